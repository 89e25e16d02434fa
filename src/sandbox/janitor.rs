//! The janitor: a thread that removes the leftovers of workers, one worker after the other.
//!
//! A script decides how many files it leaves, and removing hundreds of thousands takes seconds. On the thread of the
//! runtime, every other request would wait for that.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use super::jail::Leftovers;

/// Takes leftovers; `None` stops the janitor. Cheap to clone.
#[derive(Clone)]
pub(super) struct Bin(Sender<Option<Leftovers>>);

impl Bin {
    /// Has the janitor remove `leftovers`. Never waits while the janitor lives; when it has stopped, the process is about
    /// to exit, and the leftovers are removed here.
    pub(super) fn throw(&self, leftovers: Leftovers) {
        if let Err(mpsc::SendError(Some(leftovers))) = self.0.send(Some(leftovers)) {
            leftovers.remove();
        }
    }
}

/// The janitor. Dropping it waits until everything that was thrown away is removed.
pub(super) struct Janitor {
    bin: Bin,
    thread: Option<JoinHandle<()>>,
}

impl Janitor {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be created.
    pub(super) fn start() -> io::Result<Janitor> {
        let (sender, messages) = mpsc::channel::<Option<Leftovers>>();
        let work = move || {
            while let Ok(Some(leftovers)) = messages.recv() {
                leftovers.remove();
            }
        };
        let thread = std::thread::Builder::new().name(String::from("janitor")).spawn(work)?;
        Ok(Janitor { bin: Bin(sender), thread: Some(thread) })
    }

    /// The bin to throw leftovers into.
    pub(super) fn bin(&self) -> Bin {
        self.bin.clone()
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // Fails if the thread has panicked, and then the join returns at once.
        let _ = self.bin.0.send(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
