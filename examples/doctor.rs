//! Looks at a database for damage, and copies what can be read into a new one.
//!
//! ```text
//! doctor verify DIRECTORY          reads everything and lists what is damaged; changes nothing
//! doctor salvage DIRECTORY NEW     copies what can be read into a new database
//! doctor                           shows both on a database that it damages itself
//! ```

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

fn verify(directory: &Path) -> sled::Result<bool> {
    let db = sled::Config::new().path(directory).read_only(true).open()?;
    let mut shown = 0;
    let found = db.verify_with(|progress| {
        let percent = progress.bytes * 100 / progress.of.max(1);
        if percent >= shown + 10 {
            eprintln!("{percent} % of {} MB, {} damaged", progress.of >> 20, progress.damages);
            shown = percent;
        }
        ControlFlow::Continue(())
    })?;
    found.damages.iter().for_each(|damage| println!("{damage}"));
    println!("{} trees, {} keys, {} damages", found.trees, found.records, found.damages.len());
    Ok(found.is_whole())
}

fn salvage(from: &Path, to: &Path) -> sled::Result<bool> {
    let result = sled::Db::salvage(from, to)?;
    result.lost.iter().for_each(|damage| println!("lost: {damage}"));
    println!("{} keys of {} trees are in {}", result.records, result.trees, to.display());
    if result.may_be_older {
        println!("what leads to the newest state is damaged: some of them may be older than they were");
    }
    Ok(result.is_whole())
}

/// A database of 10,001 keys, one of its values damaged, verified and salvaged.
pub fn show() -> sled::Result<bool> {
    let directory = std::env::temp_dir().join(format!("sled-doctor-{}", std::process::id()));
    let (damaged, new) = (directory.join("damaged"), directory.join("new"));
    {
        let db = sled::open(&damaged)?;
        for number in 0..10_000_u32 {
            db.insert(number.to_be_bytes(), vec![b'x'; 100])?;
        }
        db.insert("picture", vec![b'!'; 100_000])?;
        assert!(db.verify()?.is_whole());
    }
    let file = damaged.join("db");
    let mut bytes = std::fs::read(&file)?;
    let picture = bytes.windows(8).position(|part| part == b"!!!!!!!!").expect("it was written");
    bytes[picture] = b'?';
    std::fs::write(&file, bytes)?;

    assert!(!verify(&damaged)?);
    assert!(!salvage(&damaged, &new)?);
    let db = sled::open(&new)?;
    assert!(db.verify()?.is_whole() && db.len() == 10_000 && db.get("picture")?.is_none());
    drop(db);
    std::fs::remove_dir_all(&directory)?;
    Ok(true)
}

fn main() -> sled::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_whole = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show()?,
        ["verify", directory] => verify(Path::new(directory))?,
        ["salvage", from, to] => salvage(Path::new(from), Path::new(to))?,
        _ => {
            eprintln!("doctor verify DIRECTORY | doctor salvage DIRECTORY NEW");
            return Ok(ExitCode::from(2));
        }
    };
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
