//! Keys that sort as their parts do: readings of sensors, by sensor and time, read as ranges.
//!
//! Numbers are big-endian, so that they sort as bytes; a text that is not the last part ends with a zero byte, so
//! that `a` comes before `ab` whatever follows.

pub fn main() -> sled::Result<()> {
    let db = sled::Config::new().temporary(true).open()?;

    for (sensor, time, value) in
        [("roof", 1000, 21), ("cellar", 900, 12), ("roof", 70, 18), ("roof-2", 80, 30), ("roof", 300, 19)]
    {
        db.insert(key(sensor, time), i16::to_be_bytes(value))?;
    }

    // All readings of one sensor, in the order of time: not those of `roof-2`.
    let roof = read(db.scan_prefix(prefix("roof")))?;
    assert_eq!(roof, [(70, 18), (300, 19), (1000, 21)]);

    // A span of time, newest first.
    let recent = read(db.range(key("roof", 100)..=key("roof", 1000)).rev())?;
    assert_eq!(recent, [(1000, 21), (300, 19)]);

    // The last reading at or before a time.
    let (found, value) = db.range(key("roof", 0)..=key("roof", 299)).next_back().expect("there is one")?;
    assert_eq!((time(&found), number(&value)), (70, 18));

    // The next sensor after one, without going through its readings.
    let (next, _) = db.get_gt(key("roof", u64::MAX))?.expect("there is one");
    assert!(next.starts_with(b"roof-2\0"));

    // Everything that is older than a time, for all keys of a sensor, goes away in one step.
    let mut old = sled::Batch::default();
    for reading in db.range(prefix("roof")..key("roof", 300)).keys() {
        old.remove(reading?);
    }
    db.apply_batch(old)?;
    assert_eq!(db.len(), 4);

    println!("roof: {roof:?}; the newest first: {recent:?}");
    Ok(())
}

fn prefix(sensor: &str) -> Vec<u8> {
    [sensor.as_bytes(), &[0]].concat()
}

fn key(sensor: &str, time: u64) -> Vec<u8> {
    [&prefix(sensor)[..], &time.to_be_bytes()].concat()
}

fn time(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[key.len() - 8..].try_into().expect("a key ends with eight bytes"))
}

fn number(value: &[u8]) -> i16 {
    i16::from_be_bytes(value.try_into().expect("a value has two bytes"))
}

fn read(
    pairs: impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>,
) -> sled::Result<Vec<(u64, i16)>> {
    pairs.map(|pair| pair.map(|(key, value)| (time(&key), number(&value)))).collect()
}
