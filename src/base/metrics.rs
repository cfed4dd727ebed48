//! How often and for how long the main operations ran, in this process.
//!
//! # How it works
//!
//! [`measure`] returns a value that adds the time until it is dropped to the row of its operation: two reads of the clock
//! and three relaxed additions to a cache line of that operation alone. With the feature `no_metrics`, which is on by
//! default, the value has no size and nothing is measured.
//!
//! [`report`] makes a table of it, which a database prints when it is closed if `print_profile_on_drop` was set. The rows are
//! of all databases of the process.

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "no_metrics", allow(dead_code))]
pub enum Op {
    /// `get` and `contains_key`.
    Get,
    /// Changing one key: `insert`, `remove`, `compare_and_swap`, the updates, pops, and `merge`, of which several that are
    /// made in one write count as one.
    Write,
    /// A step of an iterator or a neighbour that was looked for: one leaf.
    Scan,
    /// `apply_batch`.
    Batch,
    /// A transaction, with all runs of its closure.
    Transaction,
    /// A run of a closure after one that met a conflict.
    Rerun,
    /// `flush`.
    Flush,
    /// A sync of the medium.
    Sync,
    /// Opening a database.
    Open,
}

pub use self::chosen::{measure, report};

#[cfg(feature = "no_metrics")]
mod chosen {
    use super::Op;

    /// Measures nothing.
    #[derive(Debug)]
    pub struct Measured;

    /// Measures nothing.
    #[inline(always)]
    pub fn measure(_op: Op) -> Measured {
        Measured
    }

    /// Nothing was measured.
    pub fn report() -> Option<String> {
        None
    }
}

#[cfg(not(feature = "no_metrics"))]
mod chosen {
    use super::Op;
    use crossbeam_utils::CachePadded;
    use std::fmt::Write as _;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    /// Rows of the table, in the order of [`Op`].
    const NAMES: [&str; 9] =
        ["get", "write", "scan step", "batch", "transaction", "rerun", "flush", "sync", "open"];

    /// One operation. Statistics: all relaxed.
    #[derive(Debug)]
    struct Row {
        count: AtomicU64,
        nanos: AtomicU64,
        longest: AtomicU64,
    }

    static ROWS: [CachePadded<Row>; NAMES.len()] = [const {
        let (count, nanos, longest) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        CachePadded::new(Row { count, nanos, longest })
    }; NAMES.len()];

    /// An operation that is running; ends when it is dropped.
    #[derive(Debug)]
    pub struct Measured {
        op: Op,
        start: Instant,
    }

    /// Measures from here until what is returned is dropped.
    pub fn measure(op: Op) -> Measured {
        Measured { op, start: Instant::now() }
    }

    impl Drop for Measured {
        fn drop(&mut self) {
            let nanos = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let row = &ROWS[self.op as usize];
            // Relaxed: statistics.
            row.count.fetch_add(1, Ordering::Relaxed);
            row.nanos.fetch_add(nanos, Ordering::Relaxed);
            row.longest.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// The table of what has ended so far.
    pub fn report() -> Option<String> {
        let mut table = format!(
            "{:<12}{:>12}{:>14}{:>12}{:>12}\n",
            "operation", "count", "total ms", "mean us", "max us"
        );
        for (name, row) in NAMES.iter().zip(&ROWS) {
            // Relaxed: statistics.
            let count = row.count.load(Ordering::Relaxed);
            if count == 0 {
                continue;
            }
            let micros = row.nanos.load(Ordering::Relaxed) as f64 / 1e3;
            let longest = row.longest.load(Ordering::Relaxed) as f64 / 1e3;
            let (total, mean) = (micros / 1e3, micros / count as f64);
            writeln!(table, "{name:<12}{count:>12}{total:>14.3}{mean:>12.3}{longest:>12.3}")
                .expect("a string has room");
        }
        table.push_str(&crate::base::allocations());
        Some(table)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_was_measured_is_in_the_table() {
            assert_eq!(NAMES[Op::Open as usize], "open");
            drop(measure(Op::Rerun));
            drop(measure(Op::Rerun));
            let table = report().expect("there is one");
            let row = table.lines().find(|line| line.starts_with("rerun")).expect("it was measured");
            let count: u64 = row.split_whitespace().nth(1).expect("a count").parse().expect("a number");
            assert!(count >= 2, "{table}");
            assert!(table.starts_with("operation") && table.contains("max us"), "{table}");
        }
    }
}
