//! Durable writes from many tasks that share their syncs, with an executor of a few lines.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

/// Wakes the thread that polls.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which sleeps while there is nothing to do.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Writes a message and returns when it is durable.
async fn deliver(inbox: &sled::Tree, id: u64, text: &str) -> sled::Result<()> {
    inbox.insert(id.to_be_bytes(), text)?;
    inbox.flush_async().await?;
    Ok(())
}

pub fn main() -> sled::Result<()> {
    let config = sled::Config::new().temporary(true);
    let db = config.open()?;
    let inbox = db.open_tree("inbox")?;
    let mut arrivals = inbox.watch_prefix("");

    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (db, inbox) = (db.clone(), inbox.clone());
            thread::spawn(move || {
                block_on(async {
                    for _ in 0..5 {
                        deliver(&inbox, db.generate_id()?, &format!("from task {task}")).await?;
                    }
                    Ok::<(), sled::Error>(())
                })
            })
        })
        .collect();

    // A subscriber is a future, too: each time of the next change.
    let seen = block_on(async {
        let mut seen = 0;
        while seen < 40 {
            assert!((&mut arrivals).await.is_some(), "the tree is open");
            seen += 1;
        }
        seen
    });
    for task in tasks {
        task.join().expect("no panic")?;
    }
    assert_eq!((seen, inbox.len()), (40, 40));
    assert_eq!(block_on(db.flush_async())?, 0, "all of it is durable");

    println!("{seen} messages were seen, and are durable");
    Ok(())
}
