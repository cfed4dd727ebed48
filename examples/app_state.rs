//! The state of a desktop application: typed settings, recent documents, an undo history, and a watcher that redraws.

use sled::transaction::TransactionResult;
use sled::{IVec, Subscriber, Transactional, Tree};
use std::time::Duration;

struct State {
    settings: Tree,
    undo: Tree,
}

impl State {
    fn font_size(&self) -> sled::Result<u16> {
        let stored = self.settings.get("font size")?;
        Ok(stored.map_or(12, |bytes| u16::from_be_bytes(bytes.as_ref().try_into().expect("two bytes"))))
    }

    fn set_font_size(&self, size: u16) -> TransactionResult<()> {
        self.change("font size", &size.to_be_bytes())
    }

    /// Changes a setting and remembers what it was, both or neither. Identifiers ascend: the last is the newest.
    fn change(&self, setting: &str, to: &[u8]) -> TransactionResult<()> {
        (&self.settings, &self.undo).transaction(|(settings, undo)| {
            let before = settings.insert(setting, to)?.unwrap_or_default();
            let change = [setting.as_bytes(), &[0], &before].concat();
            undo.insert(undo.generate_id()?.to_be_bytes(), change)?;
            Ok(())
        })
    }

    /// Takes the last change back; `false`: there is none.
    fn undo(&self) -> TransactionResult<bool> {
        (&self.settings, &self.undo).transaction(|(settings, undo)| {
            let Some((number, change)) = undo.last()? else { return Ok(false) };
            undo.remove(number)?;
            let end = change.iter().position(|byte| *byte == 0).expect("a zero ends the setting's name");
            let (setting, before) = (change.subslice(0, end), &change[end + 1..]);
            if before.is_empty() {
                settings.remove(setting)?
            } else {
                settings.insert(setting, before)?
            };
            Ok(true)
        })
    }

    /// Puts a document first in the list of recent ones, which has three at most, and returns the list.
    fn opened(&self, path: &str) -> sled::Result<Option<IVec>> {
        self.settings.update_and_fetch("recent", |old| {
            let old = str::from_utf8(old.unwrap_or_default()).expect("paths are UTF-8");
            let others = old.lines().filter(|other| *other != path);
            Some(std::iter::once(path).chain(others).take(3).collect::<Vec<_>>().join("\n").into_bytes())
        })
    }
}

/// Draws again what has changed; how many changes that were.
fn redraw(changes: &mut Subscriber) -> usize {
    std::iter::from_fn(|| changes.next_timeout(Duration::ZERO).ok()).count()
}

pub fn main() -> TransactionResult<()> {
    let db = sled::Config::new().temporary(true).open()?;
    let state = State { settings: db.open_tree("settings")?, undo: db.open_tree("undo")? };
    let mut changes = state.settings.watch_prefix("");
    state.set_font_size(14)?;
    state.set_font_size(18)?;
    assert_eq!((state.font_size()?, redraw(&mut changes)), (18, 2));
    assert!(state.undo()? && state.font_size()? == 14);
    assert!(state.undo()? && state.font_size()? == 12 && !state.undo()?);

    let recent = ["a.txt", "b.txt", "a.txt", "c.txt", "d.txt"].map(|path| state.opened(path));
    assert_eq!(recent.into_iter().last().expect("five")?, Some("d.txt\nc.txt\na.txt".into()));
    assert_eq!(redraw(&mut changes), 7);
    db.flush()?; // on exit
    println!("font size {}, and three recent documents", state.font_size()?);
    Ok(())
}
