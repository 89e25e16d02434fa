//! API keys: who may run scripts. Requests carry them as bearer tokens.

use std::fmt;
use std::path::Path;

use http::HeaderValue;
use subtle::{ConditionallySelectable, ConstantTimeEq};

/// The shortest key, characters: 16 characters of base64 carry 96 random bits.
pub const LEAST_LENGTH: usize = 16;

/// Marks that no key matches.
const NO_KEY: u64 = u64::MAX;

/// The configured keys. Every request must carry one of them.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeys(Vec<String>);

/// Why the keys were refused. The message never repeats them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiKeysError {
    /// The file after the `@` cannot be read.
    #[error("names a file that cannot be read")]
    Unreadable,
    /// A key is too short, or contains a character that cannot stand in a header.
    #[error(
        "must contain keys of at least {LEAST_LENGTH} visible characters, separated by commas, or be @ and the path of a file with one key per line"
    )]
    Invalid,
}

impl ApiKeys {
    /// Reads keys separated by commas, or from the file whose path follows an `@`, one key per line.
    ///
    /// # Errors
    /// See [`ApiKeysError`].
    pub fn read(setting: &str) -> Result<ApiKeys, ApiKeysError> {
        let (text, separator) = match setting.strip_prefix('@') {
            Some(file) => (
                std::fs::read_to_string(Path::new(file)).map_err(|_| ApiKeysError::Unreadable)?,
                '\n',
            ),
            None => (setting.to_owned(), ','),
        };
        let keys: Vec<String> = text
            .split(separator)
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect();
        let is_valid = |key: &String| {
            key.len() >= LEAST_LENGTH && key.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if keys.is_empty() || !keys.iter().all(is_valid) {
            return Err(ApiKeysError::Invalid);
        }
        Ok(ApiKeys(keys))
    }

    /// Returns the index of the key in an `Authorization` header, or `None` if it is missing or unknown. The comparison
    /// takes as long for a wrong key as for a right one of the same length, so timing reveals nothing.
    pub fn find(&self, authorization: Option<&HeaderValue>) -> Option<usize> {
        let token = authorization.and_then(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().as_bytes())
        });
        let token = token?;
        let mut found = NO_KEY;
        for (number, key) in self.0.iter().enumerate() {
            found.conditional_assign(&(number as u64), key.as_bytes().ct_eq(token));
        }
        (found != NO_KEY).then_some(found as usize)
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} keys", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "first-0123456789";
    const SECOND: &str = "second-0123456789";

    fn found(keys: &ApiKeys, authorization: &str) -> Option<usize> {
        keys.find(Some(&HeaderValue::from_str(authorization).unwrap()))
    }

    #[test]
    fn every_configured_key_is_found_and_nothing_else_is() {
        let keys = ApiKeys::read(&format!("{FIRST}, {SECOND}")).unwrap();
        for (number, key) in [FIRST, SECOND].into_iter().enumerate() {
            assert_eq!(found(&keys, &format!("Bearer {key}")), Some(number));
            assert_eq!(found(&keys, &format!("bearer {key}")), Some(number));
        }
        for wrong in
            ["", FIRST, "Bearer", "Bearer ", "Basic first-0123456789", "Bearer first-012345678"]
        {
            assert_eq!(found(&keys, wrong), None, "{wrong}");
        }
        assert_eq!(found(&keys, &format!("Bearer {FIRST},{SECOND}")), None);
        assert_eq!(keys.find(None), None);
    }

    #[test]
    fn invalid_keys_are_refused_without_being_repeated() {
        for setting in [
            "",
            ",",
            "short",
            "first-0123456789,short",
            "with space 0123456789",
            "schlüssel-0123456789",
        ] {
            assert_eq!(ApiKeys::read(setting), Err(ApiKeysError::Invalid), "{setting}");
        }
        assert_eq!(ApiKeys::read("@/nowhere/keys"), Err(ApiKeysError::Unreadable));
        assert_eq!(format!("{:?}", ApiKeys::read(FIRST).unwrap()), "1 keys");
    }
}
