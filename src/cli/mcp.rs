//! `mainbox mcp`: the Model Context Protocol over standard input and output, one message a line:
//! <https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/stdio>. Each message passes the handler, as
//! one that came over HTTP does.

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::thread;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::error::CommandError;
use crate::handler::Handler;
use crate::handler::mcp::OverStdio;
use crate::mcp::message::Message;
use crate::mcp::method::cancelled;

/// The longest line that is read, bytes: more than a body may have, so that the handler refuses a longer one in the words
/// of the protocol.
const MAX_LINE_BYTES: u64 = 9 << 20;
/// How many lines may wait to be read, and how many answers to be written. A line can be long.
const WAITING: usize = 1;
/// How many messages are answered at once. Further lines are not read before one is answered and written.
const AT_ONCE: usize = 64;

/// Serves messages until standard input ends and the last one is answered. Returns whether that went well.
///
/// # Errors
/// When standard input cannot be read or standard output cannot be written.
pub(super) async fn serve(handler: &Handler) -> Result<bool, CommandError> {
    let mut lines = read_lines(io::stdin());
    let (answers, written) = write_lines(io::stdout());
    let mut written = std::pin::pin!(written);
    let mut running = JoinSet::new();
    let mut calls: HashMap<String, AbortHandle> = HashMap::new();
    loop {
        let line = tokio::select! {
            biased;
            failed = &mut written => return finished(failed),
            Some(ended) = running.join_next_with_id() => match ended {
                Ok((task, Some(id))) => {
                    // Two calls may have the same id.
                    if calls.get(&id).is_some_and(|call: &AbortHandle| call.id() == task) {
                        calls.remove(&id);
                    }
                    continue;
                }
                // A call that panicked has no answer, and its client would wait for one.
                Err(error) if error.is_panic() => return Ok(false),
                _ => continue,
            },
            line = lines.recv(), if running.len() < AT_ONCE => line,
        };
        match line {
            None => break,
            Some(Err(error)) => return Err(CommandError::Stdin(error)),
            Some(Ok(line)) => {
                let message = Message::read(&line).ok();
                if let Some(cancelled) = message.as_ref().and_then(cancelled) {
                    calls.remove(cancelled.text()).as_ref().map(AbortHandle::abort);
                    continue;
                }
                let id = message.and_then(|message| message.id).map(|id| id.text().to_owned());
                let answering = answer(handler.clone(), line, answers.clone(), id.clone());
                let call = running.spawn(answering);
                if let Some(id) = id {
                    calls.insert(id, call);
                }
            }
        }
    }
    while running.join_next().await.is_some() {}
    drop(answers);
    finished(written.await)
}

fn finished(
    written: Result<io::Result<()>, oneshot::error::RecvError>,
) -> Result<bool, CommandError> {
    match written {
        Ok(written) => written.map(|()| true).map_err(CommandError::Stdout),
        Err(_) => Ok(false),
    }
}

/// Has the handler answer a line. Returns the id of the message.
async fn answer(
    handler: Handler,
    line: Vec<u8>,
    answers: mpsc::Sender<Bytes>,
    id: Option<String>,
) -> Option<String> {
    let mut request = super::local_request("/mcp", line);
    request.extensions_mut().insert(OverStdio);
    let mut body = handler.handle(request).await.into_body();
    let mut line = Vec::new();
    while let Some(piece) = body.next().await {
        line.extend_from_slice(&piece);
        // A message of its own, before the answer. No other line break occurs in messages.
        if line.ends_with(b"\n") {
            line.pop();
            send(&answers, std::mem::take(&mut line)).await;
        }
    }
    send(&answers, line).await;
    id
}

async fn send(answers: &mpsc::Sender<Bytes>, line: Vec<u8>) {
    if !line.is_empty() {
        // Fails only if standard output has failed, which ends the command.
        let _ = answers.send(line.into()).await;
    }
}

/// Reads lines in a thread of its own, since reading blocks. The thread ends with the input, or with the process.
fn read_lines(input: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, lines) = mpsc::channel(WAITING);
    thread::spawn(move || {
        let mut input = io::BufReader::new(input);
        loop {
            let line = read_line(&mut input);
            let is_last = !matches!(line, Ok(Some(_)));
            let sent = line.transpose().is_none_or(|line| sender.blocking_send(line).is_ok());
            if is_last || !sent {
                break;
            }
        }
    });
    lines
}

/// The next line that is not empty, without its end; `None` at the end of the input. Of a line that is too long, only the
/// beginning is kept.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    loop {
        let mut line = Vec::new();
        if input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.len() as u64 == MAX_LINE_BYTES && !line.ends_with(b"\n") {
            input.skip_until(b'\n')?;
        }
        let end = line.trim_ascii_end().len();
        line.truncate(end);
        if !line.is_empty() {
            return Ok(Some(line));
        }
    }
}

/// Writes lines in a thread of its own, since writing blocks. The second value tells when it has ended: with an error, or
/// once every sender is dropped.
fn write_lines(
    mut output: impl Write + Send + 'static,
) -> (mpsc::Sender<Bytes>, oneshot::Receiver<io::Result<()>>) {
    let (sender, mut lines) = mpsc::channel::<Bytes>(WAITING);
    let (ended, written) = oneshot::channel();
    thread::spawn(move || {
        let mut write = || {
            while let Some(line) = lines.blocking_recv() {
                output.write_all(&line)?;
                output.write_all(b"\n")?;
                output.flush()?;
            }
            Ok(())
        };
        let _ = ended.send(write());
    });
    (sender, written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_without_their_ends_and_long_ones_are_cut() {
        let long = "x".repeat(MAX_LINE_BYTES as usize + 7);
        let input = format!("a\r\n\n {long}\nb");
        let mut input = io::Cursor::new(input);
        let mut next = || read_line(&mut input).unwrap();
        assert_eq!(next(), Some(b"a".to_vec()));
        assert_eq!(next().map(|line| line.len() as u64), Some(MAX_LINE_BYTES));
        assert_eq!(next(), Some(b"b".to_vec()));
        assert_eq!(next(), None);
    }
}
