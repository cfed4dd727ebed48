//! The examples run, and what they assert holds. Each is a module here, and its
//! `main` public, besides being a program.

#[path = "../examples/app_state.rs"]
mod app_state;
#[path = "../examples/async_flush.rs"]
mod async_flush;
#[path = "../examples/doctor.rs"]
#[expect(dead_code, reason = "the command line is not used")]
mod doctor;
#[path = "../examples/merge_operator.rs"]
mod merge_operator;
#[path = "../examples/ordered_keys.rs"]
mod ordered_keys;
#[path = "../examples/transactions_across_trees.rs"]
mod transactions_across_trees;
#[path = "../examples/watch.rs"]
mod watch;

#[test]
fn app_state_runs() {
    app_state::main().unwrap();
}

#[test]
fn async_flush_runs() {
    async_flush::main().unwrap();
}

#[test]
fn doctor_runs() {
    doctor::show().unwrap();
}

#[test]
fn merge_operator_runs() {
    merge_operator::main().unwrap();
}

#[test]
fn ordered_keys_runs() {
    ordered_keys::main().unwrap();
}

#[test]
fn transactions_across_trees_runs() {
    transactions_across_trees::main().unwrap();
}

#[test]
fn watch_runs() {
    watch::main().unwrap();
}
