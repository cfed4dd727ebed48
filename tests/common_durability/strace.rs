//! The log that `strace -f -o` writes, taken apart.

use std::collections::HashMap;

/// A system call in the order of lines: where it began and ended, and its text.
#[derive(Debug)]
pub struct Syscall {
    pub task: u32,
    pub began: usize,
    pub ended: usize,
    pub text: String,
}

impl Syscall {
    /// Whether it is one of these, about something that has `path` in its name.
    pub fn is(&self, names: &[&str], path: &str) -> bool {
        names.iter().any(|name| self.text.starts_with(&format!("{name}("))) && self.text.contains(path)
    }

    pub fn worked(&self) -> bool {
        !self.text.contains(") = -1")
    }
}

/// Puts the halves of calls together that another thread interrupted in the log.
pub fn parse(log: &str) -> Vec<Syscall> {
    let mut calls = Vec::new();
    let mut open = HashMap::new();
    for (number, line) in log.lines().enumerate() {
        let Some((task, rest)) = line.split_once(' ') else { continue };
        let Ok(id) = task.parse() else { continue };
        let rest = rest.trim_start();
        if let Some(first) = rest.strip_suffix("<unfinished ...>") {
            open.insert(task, (number, first.to_string()));
        } else if let Some(second) = rest.strip_prefix("<... ") {
            if let Some((began, first)) = open.remove(task) {
                let text = first + second.split_once("resumed>").map_or("", |halves| halves.1);
                calls.push(Syscall { task: id, began, ended: number, text });
            }
        } else {
            calls.push(Syscall { task: id, began: number, ended: number, text: rest.to_string() });
        }
    }
    calls
}
