//! `Subscriber`: the stream of changes that somebody watches.

use crate::ivec::IVec;
use crate::tree::watch::{Event, Queue, Watchers};
use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A stream of the changes to a tree, made by [`Tree::watch_prefix`](crate::Tree::watch_prefix), where it is said what is
/// in it.
///
/// It is an [`Iterator`] that waits for the next change and ends when the stream does, and a [`Future`] of the next
/// change, which can be awaited again and again as `(&mut subscriber).await`. Dropping it never waits for anybody.
///
/// # Examples
///
/// ```
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// let mut subscriber = db.watch_prefix("");
/// let writer = std::thread::spawn({
///     let db = db.clone();
///     move || db.insert("key", "value")
/// });
/// assert_eq!(*subscriber.next().expect("the database is open").key(), "key");
/// writer.join().expect("no panic")?;
/// # Ok(())
/// # }
/// ```
pub struct Subscriber {
    queue: Arc<Queue>,
    /// Gone when the tree is.
    watchers: Weak<Watchers>,
    /// `Subscriber` of 0.34 is not `Sync`, and what makes it so may come back.
    not_sync: std::marker::PhantomData<std::cell::Cell<()>>,
}

impl Subscriber {
    pub(super) fn new(watchers: &Arc<Watchers>, prefix: &[u8]) -> Subscriber {
        let queue = watchers.watch(IVec::from(prefix));
        Subscriber { queue, watchers: Arc::downgrade(watchers), not_sync: std::marker::PhantomData }
    }

    /// Returns the next change, waiting for it no longer than `timeout`.
    ///
    /// # Errors
    /// `Timeout` when there was none; `Disconnected` when the stream has ended.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc::RecvTimeoutError;
    /// use std::time::Duration;
    ///
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let mut subscriber = db.watch_prefix("");
    /// assert_eq!(subscriber.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
    /// db.insert("key", "value")?;
    /// assert!(subscriber.next_timeout(Duration::ZERO).is_ok());
    /// drop(db);
    /// assert_eq!(subscriber.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    /// # Ok(())
    /// # }
    /// ```
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        // A timeout past the end of time is none.
        match self.queue.next(Instant::now().checked_add(timeout)) {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(RecvTimeoutError::Disconnected),
            Err(_) => Err(RecvTimeoutError::Timeout),
        }
    }

    /// Returns whether the stream has ended, or will when what waits is fetched, because more than 32 MiB were waiting.
    /// Then changes were missed: watch anew and read what is there.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let mut subscriber = db.watch_prefix("");
    /// for i in 0..40_u8 {
    ///     db.insert([i], vec![i; 1 << 20])?;
    /// }
    /// assert!(subscriber.lagged());
    /// assert_eq!(subscriber.next().expect("the first are there").key().as_ref(), [0]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lagged(&self) -> bool {
        self.queue.lagged()
    }
}

impl Iterator for Subscriber {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.queue.next(None).ok().flatten()
    }
}

impl Future for Subscriber {
    type Output = Option<Event>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.queue.poll(context)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if let Some(watchers) = self.watchers.upgrade() {
            watchers.forget(&self.queue);
        }
    }
}
