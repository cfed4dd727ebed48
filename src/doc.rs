//! What is good to know, in prose. With the feature `docs` only; the names are those of sled 0.34.

pub mod engineering_practices {
    //! How this crate is made.
    //!
    //! One layer calls the one below it and nothing else, and a test reads the imports to see that it stays so. Each layer
    //! numbers its invariants, and code that relies on one cites it. Unsafe code is in a few listed files, each operation
    //! with the reason why it is sound. Every byte that goes to the disk is defined in one place and fixed by a test.
}

pub mod limits {
    //! How much of what there may be.
    //!
    //! - a key: 32 MiB; a key and its value together: about 1 GiB; either may be empty
    //! - a file: 16 TiB
    //! - trees of a database: 4 billion over its life, with names of any bytes
    //! - threads: any number
    //! - processes: one at a time has a database open
    //!
    //! What is beyond a limit is [`Error::Unsupported`](crate::Error::Unsupported), and nothing has happened.
    //! [`Config::cache_capacity`](crate::Config::cache_capacity) says what it bounds and what comes on top.
}

pub mod merge_operators {
    //! Changing a value without reading it first.
    //!
    //! A [`MergeOperator`](crate::MergeOperator) makes a new value out of the old one and an operand. It is set for each
    //! tree after each opening, as only its results are stored. Counters, sets and logs of a key are its typical uses.
    //! Inside a transaction, [`merge`](crate::transaction::TransactionalTree::merge) does not read the key, so
    //! transactions that merge into the same one do not conflict.
    //!
    //! ```
    //! # fn main() -> sled::Result<()> {
    //! let db = sled::Config::new().temporary(true).open()?;
    //! db.set_merge_operator(|_key, old, operand| Some([old.unwrap_or_default(), operand].concat()));
    //! db.merge("list", "a")?;
    //! assert_eq!(db.merge("list", "b")?, Some("ab".into()));
    //! # Ok(())
    //! # }
    //! ```
}

pub mod performance_guide {
    //! What is fast and what is not.
    //!
    //! - Let [`Config::cache_capacity`](crate::Config::cache_capacity) hold what is used often. A read of what is not in
    //!   memory is one read of the disk.
    //! - Writes are as fast as memory until the log has to wait for the disk; a
    //!   [`flush`](crate::Tree::flush) is as fast as the disk can sync. Many threads that flush at the same time share one
    //!   sync, so threads, or one flush for many writes, help more than anything else.
    //! - Big-endian numbers sort as numbers do; keys that are read together should share a prefix.
    //! - [`len`](crate::Tree::len) goes through all leaves.
    //! - Transactions over keys that others write all the time run again; keep them short, and use
    //!   [`merge`](crate::transaction::TransactionalTree::merge) for counters.
    //! - Always measure with `--release`.
}

pub mod reactive_semantics {
    //! What somebody who watches a tree sees.
    //!
    //! [`watch_prefix`](crate::Tree::watch_prefix) returns a stream of the changes to keys with a prefix, which can be
    //! waited for by a thread or awaited by a task. Changes come in the order in which they were made; those of a
    //! transaction or a batch come together. What is seen is not durable yet: flush before telling the world. Writers
    //! never wait for who watches: a stream that is not read ends, and says that it
    //! [lagged](crate::Subscriber::lagged).
}

pub mod sled_architectural_outlook {
    //! How the parts fit together.
    //!
    //! A Bw-tree maps keys to values. Its nodes are pages, named by numbers that a table maps to memory or to a place in
    //! the file, so that a page can change with one compare-and-swap. Changes go to a redo log first, and are durable when
    //! that is synced; images of pages follow when memory is needed or a checkpoint is made. Space that only old images
    //! use is reused after live ones have been moved together.
}

pub mod testing_strategies {
    //! How it is known to work.
    //!
    //! Random programs are compared with maps in memory, through reopens, crashes and power cuts on a simulated disk that
    //! loses, reorders and tears what was not synced. Histories of many threads are checked for linearizability. Every
    //! call of the disk fails once, and every damaged file gives an error or the right data. The lock-free parts run
    //! through all interleavings in a model checker.
}
