//! What a user can name, and the engine behind it.

pub mod compat;
pub mod config;
pub mod db;
pub mod engine;
pub mod iter;
pub mod merge_operator;
pub mod testing;
mod threads;
pub mod tree;
