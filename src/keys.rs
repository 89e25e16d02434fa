//! Who may have scripts run: the keys of `MAINBOX_API_KEYS`, as bearer tokens.

use std::fmt;
use std::path::Path;

use http::HeaderValue;
use subtle::{ConditionallySelectable, ConstantTimeEq};

/// Characters of the shortest key: 16 of base64 are 96 random bits.
pub const LEAST_LENGTH: usize = 16;

/// The number that no key has.
const NOBODY: u64 = u64::MAX;

/// Keys, of which a request must bring one.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Vec<String>);

/// Why there are no keys. Never says what was given, which is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file of `@file`.
    #[error("names a file that cannot be read")]
    Unreadable,
    /// One of them is not long enough, or could not stand in a header.
    #[error(
        "must be keys of at least {LEAST_LENGTH} visible characters each, separated by commas, or @ and a file with one a line"
    )]
    Unfit,
}

impl Keys {
    /// Reads keys separated by commas, or, after an `@`, the path of a file that has one a line.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub fn read(setting: &str) -> Result<Keys, KeysError> {
        let (text, separator) = match setting.strip_prefix('@') {
            Some(file) => {
                (std::fs::read_to_string(Path::new(file)).map_err(|_| KeysError::Unreadable)?, '\n')
            }
            None => (setting.to_owned(), ','),
        };
        let keys: Vec<String> = text
            .split(separator)
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect();
        let fit = |key: &String| {
            key.len() >= LEAST_LENGTH && key.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if keys.is_empty() || !keys.iter().all(fit) {
            return Err(KeysError::Unfit);
        }
        Ok(Keys(keys))
    }

    /// The number of the key that a request with this `Authorization` brings, if it is one of ours. Takes as long for a
    /// wrong key as for a right one of the same length.
    pub fn admit(&self, authorization: Option<&HeaderValue>) -> Option<usize> {
        let token = authorization.and_then(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().as_bytes())
        });
        let token = token?;
        let mut found = NOBODY;
        for (number, key) in self.0.iter().enumerate() {
            found.conditional_assign(&(number as u64), key.as_bytes().ct_eq(token));
        }
        (found != NOBODY).then_some(found as usize)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} keys", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "first-0123456789";
    const SECOND: &str = "second-0123456789";

    fn admits(keys: &Keys, authorization: &str) -> Option<usize> {
        keys.admit(Some(&HeaderValue::from_str(authorization).unwrap()))
    }

    #[test]
    fn any_of_the_keys_admits_and_nothing_else_does() {
        let keys = Keys::read(&format!("{FIRST}, {SECOND}")).unwrap();
        for (number, key) in [FIRST, SECOND].into_iter().enumerate() {
            assert_eq!(admits(&keys, &format!("Bearer {key}")), Some(number));
            assert_eq!(admits(&keys, &format!("bearer {key}")), Some(number));
        }
        for wrong in
            ["", FIRST, "Bearer", "Bearer ", "Basic first-0123456789", "Bearer first-012345678"]
        {
            assert_eq!(admits(&keys, wrong), None, "{wrong}");
        }
        assert_eq!(admits(&keys, &format!("Bearer {FIRST},{SECOND}")), None);
        assert_eq!(keys.admit(None), None);
    }

    #[test]
    fn keys_that_are_short_or_none_are_refused_without_being_told() {
        for setting in [
            "",
            ",",
            "short",
            "first-0123456789,short",
            "with space 0123456789",
            "schlüssel-0123456789",
        ] {
            assert_eq!(Keys::read(setting), Err(KeysError::Unfit), "{setting}");
        }
        assert_eq!(Keys::read("@/nowhere/keys"), Err(KeysError::Unreadable));
        assert_eq!(format!("{:?}", Keys::read(FIRST).unwrap()), "1 keys");
    }
}
