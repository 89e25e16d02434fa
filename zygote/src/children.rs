//! The workers of a zygote that are not reaped yet.

/// The most of them. Each request has one, and so has each spare.
const MOST: usize = 4096;

/// The workers. All zero if there are none.
#[derive(Debug)]
#[repr(C)]
pub struct Children {
    number: usize,
    places: [Child; MOST],
}

/// A worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Child {
    /// Its number.
    pub worker: u64,
    /// Its process id.
    pub pid: i32,
    /// Whether the supervisor has ordered it to be reaped. Until then, its process id stays in use.
    pub released: bool,
}

impl Children {
    /// Returns whether there is no place for a further worker.
    pub fn is_full(&self) -> bool {
        self.number >= MOST
    }

    /// Adds a worker, if there is a place for it.
    pub fn add(&mut self, worker: u64, pid: i32) {
        if let Some(place) = self.places.get_mut(self.number) {
            *place = Child { worker, pid, released: false };
            self.number += 1;
        }
    }

    /// Marks a worker as released. Returns whether it exists.
    pub fn release(&mut self, worker: u64) -> bool {
        let mut children = self.places.iter_mut().take(self.number);
        let found = children.find(|child| child.worker == worker);
        found.map(|child| child.released = true).is_some()
    }

    /// Removes the released workers for which `is_reaped` returns true.
    pub fn remove_released(&mut self, mut is_reaped: impl FnMut(Child) -> bool) {
        let mut kept = 0;
        for index in 0..self.number {
            let Some(child) = self.places.get(index).copied() else { break };
            if child.released && is_reaped(child) {
                continue;
            }
            if let Some(place) = self.places.get_mut(kept) {
                *place = child;
            }
            kept += 1;
        }
        self.number = kept;
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn children(number: u64) -> std::boxed::Box<Children> {
        let place = Child { worker: 0, pid: 0, released: false };
        let mut children = std::boxed::Box::new(Children { number: 0, places: [place; MOST] });
        (0..number).for_each(|worker| children.add(worker, 100 + worker as i32));
        children
    }

    #[test]
    fn only_released_workers_are_reaped_and_the_others_stay() {
        let mut children = children(4);
        assert!(children.release(1));
        assert!(children.release(2));
        assert!(!children.release(9));
        let mut asked = Vec::new();
        children.remove_released(|child| {
            asked.push(child.pid);
            child.worker == 1
        });
        assert_eq!(asked, [101, 102]);
        let rest: Vec<_> =
            children.places.iter().take(children.number).map(|child| child.pid).collect();
        assert_eq!(rest, [100, 102, 103]);
        // A worker that is gone cannot be released again.
        assert!(!children.release(1));
    }

    #[test]
    fn a_full_table_takes_no_further_worker() {
        let mut children = children(MOST as u64 - 1);
        assert!(!children.is_full());
        children.add(7000, 7000);
        assert!(children.is_full());
        children.add(8000, 8000);
        assert!(!children.release(8000));
        assert!(children.release(7000));
        children.remove_released(|_| true);
        assert!(!children.is_full());
    }
}
