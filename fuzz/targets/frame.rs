//! Frames from a worker, cut off anywhere: `receive` returns the same frame as a plain reader, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainbox::executor::frames::{FrameError, receive};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

const LIMIT: usize = 1000;

fuzz_target!(|sent: &[u8]| {
    // The write would wait for a reader if it exceeded the buffer of the socket.
    let sent = &sent[..sent.len().min(32 * 1024)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let received = runtime.block_on(async {
        let (supervisor, mut worker) = UnixStream::pair().unwrap();
        worker.write_all(sent).await.unwrap();
        drop(worker);
        receive(&supervisor, |_| LIMIT).await
    });
    let Some((header, rest)) = sent.split_first_chunk::<5>() else {
        assert!(matches!(received, Err(FrameError::Closed)));
        return;
    };
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    match received {
        Ok(frame) => {
            assert_eq!(frame.kind, header[0]);
            assert_eq!(frame.payload, rest[..length]);
        }
        Err(FrameError::TooLong(claimed)) => assert!(claimed == length && length > LIMIT),
        Err(error) => assert!(matches!(error, FrameError::Closed) && rest.len() < length),
    }
});
