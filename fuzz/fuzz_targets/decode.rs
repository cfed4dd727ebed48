//! Bytes as one structure after the other.

use super::seal::seal;
use sled::testing::decode_everything;

/// Decodes the bytes as they are, then with right checksums, which lead further.
pub fn run(bytes: &[u8]) {
    decode_everything(bytes);
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    decode_everything(&sealed);
}
