//! zstd behind the feature `compression`; without it nothing is compressed.
//!
//! # Format
//!
//! A compressed payload is one zstd frame (RFC 8878), without a dictionary, that says or is known by the image's header to
//! have `raw` bytes; a reader refuses a frame of any other size, and one that could not be honest: more than 2^17 times as
//! many bytes as (64 + the frame's own). Leaves and the directory may be compressed, each image by itself, when the
//! superblock's flag is set; an image that would not become a sixteenth smaller is not.

/// `bytes` compressed, if that is worth it.
#[cfg(feature = "zstd")]
pub fn compress(bytes: &[u8], level: i32) -> Option<Vec<u8>> {
    let packed = zstd::bulk::compress(bytes, level).ok()?;
    (packed.len() + packed.len() / 16 < bytes.len()).then_some(packed)
}

/// `bytes` compressed, if that is worth it.
#[cfg(not(feature = "zstd"))]
pub fn compress(_bytes: &[u8], _level: i32) -> Option<Vec<u8>> {
    None
}

/// The `raw` bytes that were compressed; `None`: damage, or the feature is off.
#[cfg(feature = "zstd")]
pub fn decompress(packed: &[u8], raw: u32) -> Option<Vec<u8>> {
    // zstd needs at least a bit for 2^7 bytes or so; a length that no honest image has is not allocated.
    if u64::from(raw) > (packed.len() as u64 + 64) << 17 {
        return None;
    }
    let bytes = zstd::bulk::decompress(packed, raw as usize).ok()?;
    (bytes.len() == raw as usize).then_some(bytes)
}

/// The `raw` bytes that were compressed; `None`: damage, or the feature is off.
#[cfg(not(feature = "zstd"))]
pub fn decompress(_packed: &[u8], _raw: u32) -> Option<Vec<u8>> {
    None
}
