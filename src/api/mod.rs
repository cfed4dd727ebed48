//! What a user can name, and the engine behind it.

pub mod batch;
pub mod compat;
pub mod config;
pub mod db;
pub mod engine;
pub mod iter;
pub mod merge_operator;
pub mod salvage;
pub mod stats;
pub mod subscriber;
pub mod testing;
// Where there are no threads, foreground calls do their work.
#[cfg_attr(target_family = "wasm", allow(dead_code))]
mod threads;
pub mod transaction;
mod transaction_error;
mod transactional_iter;
mod transactional_tree;
pub mod tree;
pub mod verify;
