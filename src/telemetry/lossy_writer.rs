//! A writer that never makes its callers wait: lines go through a queue to a thread that writes them. If the reader of
//! the output is slow, lines are lost and counted. Firecracker treats its log the same way:
//! <https://github.com/firecracker-microvm/firecracker/blob/main/SPECIFICATION.md>.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::time::{Duration, Instant};

/// The largest number of lines that wait to be written.
const MAX_WAITING: usize = 1024;
/// The interval at which [`LossyWriter::flush`] looks whether everything is written.
const FLUSH_INTERVAL: Duration = Duration::from_millis(2);

/// A writer of lines that never waits.
#[derive(Debug)]
pub struct LossyWriter {
    lines: SyncSender<Vec<u8>>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    waiting: AtomicUsize,
    lost: AtomicU64,
}

impl LossyWriter {
    /// Starts the thread, which writes to `out`. Once everything that waited has been written after lines were lost, it
    /// calls `report` with their number.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn start(
        mut out: impl Write + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<LossyWriter> {
        let (sender, lines) = mpsc::sync_channel::<Vec<u8>>(MAX_WAITING);
        let counters = Arc::new(Counters::default());
        let shared = Arc::clone(&counters);
        let write = move || {
            let mut reported = 0;
            for line in lines {
                // Fails when the reader is gone; then there is nobody to tell.
                let _ = out.write_all(&line).and_then(|()| out.flush());
                let is_last = shared.waiting.load(Ordering::Acquire) == 1;
                let lost = shared.lost.load(Ordering::Relaxed);
                if is_last && lost > reported {
                    report(lost - reported);
                    reported = lost;
                }
                // Only now, since the report may be a line that a flush has to wait for.
                shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
        };
        std::thread::Builder::new().name(String::from("writer")).spawn(write)?;
        Ok(LossyWriter { lines: sender, counters })
    }

    /// Queues a line, which must end with a line break. Loses it if the queue is full.
    pub fn write(&self, line: Vec<u8>) {
        self.counters.waiting.fetch_add(1, Ordering::AcqRel);
        if self.lines.try_send(line).is_err() {
            self.counters.waiting.fetch_sub(1, Ordering::AcqRel);
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of lines that were lost so far.
    pub fn lost(&self) -> u64 {
        self.counters.lost.load(Ordering::Relaxed)
    }

    /// Waits until every queued line is written, for at most `patience`.
    pub fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        while self.counters.waiting.load(Ordering::Acquire) > 0 && Instant::now() < end {
            std::thread::sleep(FLUSH_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn lines_beyond_the_queue_are_lost_and_reported_once_the_reader_continues() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&reports);
        let report = move |lost| {
            std::thread::sleep(Duration::from_millis(50));
            kept.lock().unwrap().push(lost);
        };
        let writer = LossyWriter::start(pipe, report).unwrap();
        // More than the queue and a pipe of 64 KiB hold.
        let line = vec![b'x'; 1000];
        let sent = MAX_WAITING as u64 + 500;
        (0..sent).for_each(|_| writer.write(line.clone()));
        writer.flush(Duration::from_millis(10));
        assert!(writer.lost() > 0 && reports.lock().unwrap().is_empty());
        let whole = (sent - writer.lost()) as usize * line.len();
        reader.read_exact(&mut vec![0; whole]).unwrap();
        writer.flush(Duration::from_secs(5));
        assert_eq!(writer.counters.waiting.load(Ordering::Acquire), 0);
        assert_eq!(*reports.lock().unwrap(), [writer.lost()]);
    }

    #[test]
    fn a_reader_that_is_gone_costs_nothing() {
        let (reader, pipe) = io::pipe().unwrap();
        drop(reader);
        let writer = LossyWriter::start(pipe, |_| {}).unwrap();
        writer.write(b"line\n".to_vec());
        writer.flush(Duration::from_secs(5));
        assert_eq!((writer.lost(), writer.counters.waiting.load(Ordering::Acquire)), (0, 0));
    }
}
