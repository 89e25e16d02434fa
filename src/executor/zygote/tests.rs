//! The control socket of a zygote.

use std::io::Read;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::*;

/// A zygote whose process sleeps, and the other end of its control socket.
fn silent_zygote() -> (Zygote, StdUnixStream, Child) {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    setsockopt(&ours, sockopt::SndBuf, &0).unwrap();
    let process = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = Pid::from_raw(process.id() as i32);
    (Zygote::connect(ours, pid, None).unwrap(), theirs, process)
}

#[tokio::test]
async fn a_message_larger_than_the_socket_buffer_arrives_whole() {
    let (zygote, mut theirs, mut process) = silent_zygote();
    let text: Vec<u8> = (0..1 << 20).map(|number| number as u8).collect();
    zygote.post(text.clone(), vec![]);
    let received = tokio::task::spawn_blocking(move || {
        let mut received = vec![0; 1 << 20];
        theirs.read_exact(&mut received).unwrap();
        received
    });
    assert!(received.await.unwrap() == text);
    zygote.gone().await;
    process.wait().unwrap();
}

#[tokio::test]
async fn an_order_that_cannot_be_sent_ends_the_zygote() {
    let (zygote, theirs, mut process) = silent_zygote();
    let null = std::fs::File::open("/dev/null").unwrap();
    // More descriptors than one message can carry.
    let many = (0..300).map(|_| null.try_clone().unwrap().into()).collect();
    let fork = zygote.fork(1, many);
    tokio::task::spawn_blocking(move || process.wait()).await.unwrap().unwrap();
    // The kernel closes the socket of a zygote that dies.
    drop(theirs);
    tokio::time::timeout(Duration::from_secs(5), zygote.gone()).await.unwrap();
    assert!(fork.await.is_err());
}

#[tokio::test]
async fn a_report_that_is_malformed_or_too_long_ends_the_zygote() {
    let info = r#"{"report":"ready","python":"3.13.0","packages":{},"missing":{},"threaded":[],"standard":[],"installed":{}}"#;
    // While it imports, and then one about a worker.
    let [mut of_no_kind, ready] = [[0; Report::BYTES].to_vec(), message(info.as_bytes())];
    of_no_kind.splice(0..0, ready);
    for report in [&b"\x02\0\0\0{}"[..], b"\xff\xff\xff\xff", &of_no_kind] {
        let (zygote, mut theirs, mut process) = silent_zygote();
        std::io::Write::write_all(&mut theirs, report).unwrap();
        tokio::time::timeout(Duration::from_secs(5), zygote.gone()).await.unwrap();
        process.wait().unwrap();
    }
}

/// Later workers are copies of the zygote's memory, in which they could find what it was told about others.
#[tokio::test]
async fn an_order_to_fork_says_nothing_about_the_worker_but_its_number() {
    let (zygote, mut theirs, mut process) = silent_zygote();
    let _fork = zygote.fork(7, vec![]);
    let received = tokio::task::spawn_blocking(move || {
        let mut received = [0; Order::BYTES];
        theirs.read_exact(&mut received).unwrap();
        received
    });
    assert_eq!(received.await.unwrap(), *b"F\x07\0\0\0\0\0\0\0");
    drop(zygote);
    process.wait().unwrap();
}
