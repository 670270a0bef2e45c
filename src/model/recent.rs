//! The rows a version answered lately, kept in memory so that its successor can be tried on real ones.
//!
//! One request in [`EVERY`] is looked at, and only where nobody else is looking: a prediction never waits for this.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::features::{Cell, Inputs};

/// One request in so many is kept: a busy version's rows then span some time, and the others cost one addition.
const EVERY: u64 = 16;

/// Rows kept at most; the oldest go first.
pub const MAX_ROWS: usize = 1024;

/// Memory kept at most, in bytes; the oldest go first, and a request larger than this is never kept.
const MAX_BYTES: usize = 4 << 20;

/// The rows answered lately.
#[derive(Debug, Default)]
pub(super) struct Recent {
    answered: AtomicU64,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    requests: VecDeque<Kept>,
    rows: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    inputs: Inputs,
    bytes: usize,
}

impl Recent {
    /// Takes note of a request that was answered, if it is its turn.
    pub(super) fn offer(&self, inputs: &Inputs) {
        if !self.answered.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY) {
            return;
        }
        if let Some(mut ring) = self.ring.try_lock() {
            ring.push(inputs.clone());
        }
    }

    /// Keeps `requests`, the oldest first.
    pub(super) fn keep(&self, requests: impl IntoIterator<Item = Inputs>) {
        let mut ring = self.ring.lock();
        for inputs in requests {
            ring.push(inputs);
        }
    }

    /// What is kept, the oldest first.
    pub(super) fn requests(&self) -> Vec<Inputs> {
        self.ring.lock().requests.iter().map(|kept| kept.inputs.clone()).collect()
    }
}

impl Ring {
    fn push(&mut self, inputs: Inputs) {
        let bytes = bytes_of(&inputs);
        if inputs.rows() > MAX_ROWS || bytes > MAX_BYTES {
            return;
        }
        self.rows += inputs.rows();
        self.bytes += bytes;
        self.requests.push_back(Kept { inputs, bytes });
        while self.rows > MAX_ROWS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.requests.pop_front() else { return };
            self.rows -= oldest.inputs.rows();
            self.bytes -= oldest.bytes;
        }
    }
}

fn bytes_of(inputs: &Inputs) -> usize {
    let text = |cell: &Cell| if let Cell::Text(text) = cell { text.len() } else { 0 };
    (0..inputs.rows()).flat_map(|row| inputs.row(row)).map(|cell| size_of::<Cell>() + text(cell)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::features::{Features, Raw, Settings};
    use crate::model::signature::{Column, Kind, Signature};

    fn inputs(first: &str, rows: usize) -> Inputs {
        let column = Column { name: "word".into(), kind: Kind::Text, required: true };
        let features = Features::new(&Signature::Columns(vec![column]), Settings::default()).unwrap();
        let mut reader = features.rows();
        for _ in 0..rows {
            reader.begin();
            reader.set("word", Raw::Text(first));
            reader.end();
        }
        reader.finish().unwrap()
    }

    fn first_cells(recent: &Recent) -> Vec<Cell> {
        recent.requests().iter().map(|inputs| inputs.row(0)[0].clone()).collect()
    }

    #[test]
    fn one_request_in_sixteen_is_kept() {
        let recent = Recent::default();
        for turn in 0..33 {
            recent.offer(&inputs(&turn.to_string(), 1));
        }
        assert_eq!(first_cells(&recent), ["0", "16", "32"].map(|text| Cell::Text(text.into())));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_rows_or_bytes() {
        let recent = Recent::default();
        recent.keep((0..3).map(|turn| inputs(&turn.to_string(), MAX_ROWS / 2)));
        assert_eq!(first_cells(&recent), ["1", "2"].map(|text| Cell::Text(text.into())));
        recent.keep([inputs("wide", MAX_ROWS + 1)]);
        assert_eq!(recent.requests().len(), 2, "what is larger than the ring is not kept");
        let long = "x".repeat(4096);
        recent.keep((0..8).map(|_| inputs(&long, MAX_ROWS / 4)));
        let ring = recent.ring.lock();
        assert!(ring.bytes <= MAX_BYTES && ring.rows <= MAX_ROWS, "{} bytes, {} rows", ring.bytes, ring.rows);
    }

    #[test]
    fn a_ring_that_is_in_use_is_passed_over() {
        let recent = Recent::default();
        let held = recent.ring.lock();
        recent.offer(&inputs("a", 1));
        drop(held);
        assert!(recent.requests().is_empty());
    }
}
