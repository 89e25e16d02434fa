//! The JSON of long results: many floating-point numbers, and long strings.
//!
//! The bytes are the same as from Python's `json.dumps` with `ensure_ascii=False`, but `null` for infinities and NaN.
//! Python takes fifteen times as long for a float, since it counts with integers of any size.

use crate::decimal::Decimal;

/// The most bytes that a number takes, with the comma after it: `-2.2250738585072014e-308,`.
pub const MOST_NUMBER_BYTES: usize = 25;
/// The most bytes that a byte of a string takes: `\u001f`.
pub const MOST_ESCAPED_BYTES: usize = 6;

/// A buffer, and how many bytes of it are written.
struct Text<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl Text<'_> {
    fn add(&mut self, byte: u8) {
        // The callers leave enough room. Indexing would add a call to panic, and code with those cannot be mapped.
        if let Some(place) = self.buffer.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn add_all(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.add(*byte));
    }

    fn add_zeros(&mut self, number: i32) {
        (0..number).for_each(|_| self.add(b'0'));
    }

    /// Adds eight bytes of a string if none of them needs an escape. Returns whether it has.
    fn add_eight(&mut self, bytes: [u8; 8]) -> bool {
        let Some(place) = self.buffer.get_mut(self.length..).and_then(<[u8]>::first_chunk_mut)
        else {
            return false;
        };
        if needs_escape(u64::from_ne_bytes(bytes)) {
            return false;
        }
        *place = bytes;
        self.length += bytes.len();
        true
    }

    fn add_escaped(&mut self, byte: u8) {
        let short = match byte {
            b'"' | b'\\' => byte,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x08 => b'b',
            0x0c => b'f',
            0..0x20 => {
                self.add_all(b"\\u00");
                self.add(b'0' + (byte >> 4));
                return self.add(hexadecimal(byte & 15));
            }
            _ => return self.add(byte),
        };
        self.add(b'\\');
        self.add(short);
    }

    /// Adds a number the way Python does: with an exponent only below 1e-4 and from 1e16.
    fn add_number(&mut self, number: f64) {
        let Some(decimal) = Decimal::of(number) else {
            return self.add_all(b"null");
        };
        if number.is_sign_negative() {
            self.add(b'-');
        }
        let (digits, count) = digits_of(decimal.digits);
        let digits = digits.get(digits.len().saturating_sub(count)..).unwrap_or_default();
        // Where the decimal point is, in digits after the first one.
        let point = count as i32 + decimal.exponent;
        match digits.split_at_checked(point.max(0) as usize) {
            _ if !(-3..=16).contains(&point) => {
                let (first, rest) = digits.split_at_checked(1).unwrap_or_default();
                self.add_all(first);
                if !rest.is_empty() {
                    self.add(b'.');
                    self.add_all(rest);
                }
                self.add_exponent(point - 1);
            }
            Some((before, after)) if point > 0 && !after.is_empty() => {
                self.add_all(before);
                self.add(b'.');
                self.add_all(after);
            }
            _ if point > 0 => {
                self.add_all(digits);
                self.add_zeros(point - count as i32);
                self.add_all(b".0");
            }
            _ => {
                self.add_all(b"0.");
                self.add_zeros(-point);
                self.add_all(digits);
            }
        }
    }

    /// Adds an exponent with its sign and at least two digits.
    fn add_exponent(&mut self, exponent: i32) {
        self.add(b'e');
        self.add(if exponent < 0 { b'-' } else { b'+' });
        let exponent = exponent.unsigned_abs();
        if exponent >= 100 {
            self.add(b'0' + (exponent / 100) as u8);
        }
        self.add(b'0' + (exponent / 10 % 10) as u8);
        self.add(b'0' + (exponent % 10) as u8);
    }
}

/// Writes numbers, each with a comma after it. Returns how many bytes those are. `buffer` has [`MOST_NUMBER_BYTES`] for each.
pub fn numbers(numbers: &[f64], buffer: &mut [u8]) -> usize {
    let mut text = Text { buffer, length: 0 };
    for number in numbers {
        text.add_number(*number);
        text.add(b',');
    }
    text.length
}

/// Writes a part of a string, which is UTF-8, without quotation marks. Returns how many bytes it takes. `buffer` has
/// [`MOST_ESCAPED_BYTES`] for each byte.
pub fn string(bytes: &[u8], buffer: &mut [u8]) -> usize {
    let mut text = Text { buffer, length: 0 };
    let (chunks, rest) = bytes.as_chunks();
    for chunk in chunks {
        if !text.add_eight(*chunk) {
            chunk.iter().for_each(|byte| text.add_escaped(*byte));
        }
    }
    rest.iter().for_each(|byte| text.add_escaped(*byte));
    text.length
}

/// Whether one of eight bytes is a control character, a quotation mark or a backslash.
fn needs_escape(bytes: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = LOW << 7;
    // The highest bit of each byte that is less than `limit`, and maybe of further ones if there is one. Bytes from 128 have
    // that bit already and are no match.
    let less = |bytes: u64, limit: u64| bytes.wrapping_sub(LOW * limit) & !bytes;
    let is = |byte: u8| less(bytes ^ (LOW * u64::from(byte)), 1);
    (less(bytes, 0x20) | is(b'"') | is(b'\\')) & HIGH != 0
}

fn hexadecimal(digit: u8) -> u8 {
    if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }
}

/// Returns the digits of a number, at the end of an array, and how many those are. Zero has one.
fn digits_of(mut number: u64) -> ([u8; 20], usize) {
    let mut digits = [b'0'; 20];
    let mut count = 0;
    for place in digits.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
        count += 1;
        if number == 0 {
            break;
        }
    }
    (digits, count)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::{MOST_ESCAPED_BYTES, MOST_NUMBER_BYTES, numbers, string};

    fn json_of_numbers(all: &[f64]) -> String {
        let mut buffer = vec![0; all.len() * MOST_NUMBER_BYTES];
        let length = numbers(all, &mut buffer);
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn json_of_string(bytes: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; bytes.len() * MOST_ESCAPED_BYTES];
        let length = string(bytes, &mut buffer);
        buffer[..length].to_vec()
    }

    /// Fails unless a number is read back from its JSON, which has as many digits as the standard library finds with another
    /// algorithm. Where two such numbers are equally near, they choose differently: tests/json_forms.rs compares with Python.
    fn check(number: f64) {
        let text = json_of_numbers(&[number]);
        let text = text.strip_suffix(',').unwrap();
        assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits());
        assert_eq!(count_digits(text), count_digits(&format!("{number:e}")), "{text}");
    }

    fn count_digits(number: &str) -> usize {
        let digits = number.split('e').next().unwrap().replace(['-', '.'], "");
        digits.trim_start_matches('0').trim_end_matches('0').len()
    }

    #[test]
    fn numbers_have_the_form_that_python_gives_them() {
        let all = [
            0.0,
            -0.0,
            1.0,
            -1.5,
            0.1,
            123.456,
            1e15,
            1e16,
            1.5e16,
            9_007_199_254_740_993.0,
            123_456_789_012_345_680.0,
            1e22,
            1e-4,
            1e-5,
            1.25e-5,
            5e-324,
            2.225_073_858_507_201_4e-308,
            f64::MAX,
            f64::NAN,
            f64::INFINITY,
            1e100,
        ];
        let expected = concat!(
            "0.0,-0.0,1.0,-1.5,0.1,123.456,1000000000000000.0,1e+16,1.5e+16,9007199254740992.0,1.2345678901234568e+17,",
            "1e+22,0.0001,1e-05,1.25e-05,5e-324,2.2250738585072014e-308,1.7976931348623157e+308,null,null,1e+100,",
        );
        assert_eq!(json_of_numbers(&all), expected);
    }

    #[test]
    fn the_longest_number_fits_exactly() {
        assert_eq!(json_of_numbers(&[-2.225_073_858_507_201_4e-308]).len(), MOST_NUMBER_BYTES);
    }

    #[test]
    fn every_power_of_two_and_its_neighbors_are_as_short_as_can_be() {
        for bits in (0..0x7ff_u64)
            .flat_map(|exponent| [0, 1, 2, (1 << 52) - 1].map(|fraction| exponent << 52 | fraction))
        {
            check(f64::from_bits(bits));
        }
    }

    #[test]
    fn strings_are_escaped_at_every_place_of_eight_bytes() {
        let all = json_of_string("\"\\\n\r\t\u{8}\u{c}\0\u{1f}\u{7f}é".as_bytes());
        assert_eq!(
            String::from_utf8(all).unwrap(),
            concat!(r#"\"\\\n\r\t\b\f\u0000\u001f"#, "\u{7f}é")
        );
        for place in 0..16 {
            let mut bytes = [b'a'; 16];
            bytes[place] = b'\n';
            let expected = [&bytes[..place], b"\\n", &bytes[place + 1..]].concat();
            assert_eq!(json_of_string(&bytes), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn numbers_of_any_bits_are_as_short_as_can_be(bits: u64) {
            let number = f64::from_bits(bits);
            prop_assume!(number.is_finite());
            check(number);
        }

        #[test]
        fn numbers_with_few_digits_are_as_short_as_can_be(digits in -100_000_i64..100_000, exponent in -30..30) {
            let number: f64 = format!("{digits}e{exponent}").parse().unwrap();
            check(number);
        }

        #[test]
        fn strings_are_escaped_byte_by_byte(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let expected: Vec<u8> = bytes.iter().flat_map(|byte| json_of_string(&[*byte])).collect();
            prop_assert_eq!(json_of_string(&bytes), expected);
        }
    }
}
