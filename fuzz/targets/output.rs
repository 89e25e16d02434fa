//! Live output: however its bytes arrive and are taken, the texts together are the whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainbox::executor::live_output::{LiveOutput, Stream};

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (bytes, steps) = input;
    let output = LiveOutput::default();
    let (mut rest, mut whole) = (bytes.as_slice(), String::new());
    for step in steps {
        let (length, most) = (usize::from(step >> 4), usize::from(step & 15) + 4);
        let (piece, after) = rest.split_at(length.min(rest.len()));
        output.push(Stream::Stdout, piece);
        rest = after;
        let has_text = output.has_text(Stream::Stdout);
        let text = output.take(Stream::Stdout, most, false);
        assert_eq!(has_text, !text.is_empty());
        whole += &text;
    }
    output.push(Stream::Stdout, rest);
    while output.unread_bytes() > 0 {
        whole += &output.take(Stream::Stdout, 5, true);
    }
    assert_eq!(whole, String::from_utf8_lossy(&bytes));
});
