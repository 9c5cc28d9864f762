//! From a request's path to a region and a key.

use bytes::Bytes;
use sharding::id::KEY_BYTES_MAX;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The first segment as it stands.
    pub(super) region: String,
    /// The rest, percent-decoded once; `None` when the path ends with the region.
    pub(super) key: Option<Bytes>,
}

/// Why a path names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TargetError {
    #[error("the key is empty; ask for /{{region}}/{{key}}")]
    EmptyKey,
    #[error("the key has {0} bytes; at most {KEY_BYTES_MAX} are allowed")]
    KeyTooLong(usize),
    #[error("a % in the path is not followed by two hexadecimal digits; write a plain % as %25")]
    PercentEncoding,
}

impl Target {
    /// Parses `/{region}` or `/{region}/{key}`. The key is all of the rest, slashes included: `a/b` and `a%2Fb` are the
    /// same key, `a%252Fb` is another.
    pub(super) fn parse(path: &str) -> Result<Self, TargetError> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let Some((region, key)) = path.split_once('/') else {
            return Ok(Self { region: path.to_owned(), key: None });
        };
        let key = decode(key.as_bytes())?;
        match key.len() {
            0 => Err(TargetError::EmptyKey),
            len if len > KEY_BYTES_MAX => Err(TargetError::KeyTooLong(len)),
            _ => Ok(Self { region: region.to_owned(), key: Some(key) }),
        }
    }
}

/// Region and key of a path that is as plain as most are: nothing in it is encoded, and nothing is wrong with it.
pub(super) fn plain(path: &str) -> Option<(&str, &[u8])> {
    let (region, key) = path.strip_prefix('/')?.split_once('/')?;
    let is_plain = (1..=KEY_BYTES_MAX).contains(&key.len()) && !key.as_bytes().contains(&b'%');
    is_plain.then_some((region, key.as_bytes()))
}

/// Percent-decodes once (RFC 3986, section 2.1), and refuses what is no encoding.
fn decode(encoded: &[u8]) -> Result<Bytes, TargetError> {
    let is_sound = encoded.iter().enumerate().filter(|&(_, &byte)| byte == b'%').all(|(at, _)| {
        let digits = encoded.get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if !is_sound {
        return Err(TargetError::PercentEncoding);
    }
    Ok(percent_encoding::percent_decode(encoded).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(path: &str) -> Result<Vec<u8>, TargetError> {
        Target::parse(path).map(|target| target.key.expect("a key").to_vec())
    }

    #[test]
    fn a_key_is_the_rest_of_the_path_decoded_once() {
        assert_eq!(key("/r/a/b"), Ok(b"a/b".to_vec()));
        assert_eq!(key("/r/a%2Fb"), Ok(b"a/b".to_vec()));
        assert_eq!(key("/r/a%2fb"), Ok(b"a/b".to_vec()));
        assert_eq!(key("/r/a%252Fb"), Ok(b"a%2Fb".to_vec()));
        assert_eq!(key("/r/k%C3%B6ln"), Ok("köln".as_bytes().to_vec()));
        assert_eq!(key("/r/%ff%00"), Ok(vec![0xff, 0]));
        assert_eq!(key("/r//"), Ok(b"/".to_vec()));
        assert_eq!(key("/r/a+b"), Ok(b"a+b".to_vec()));
    }

    #[test]
    fn a_path_without_a_key_is_a_region() {
        assert_eq!(Target::parse("/r"), Ok(Target { region: "r".to_owned(), key: None }));
        assert_eq!(Target::parse("/r/"), Err(TargetError::EmptyKey));
    }

    #[test]
    fn what_is_no_encoding_is_refused() {
        for path in ["/r/%", "/r/%2", "/r/%zz", "/r/a%", "/r/%%20", "/r/%2%46"] {
            assert_eq!(key(path), Err(TargetError::PercentEncoding), "{path}");
        }
    }

    #[test]
    fn a_key_is_bounded_after_decoding() {
        assert_eq!(key(&format!("/r/{}", "%61".repeat(KEY_BYTES_MAX))), Ok(vec![b'a'; KEY_BYTES_MAX]));
        let long = format!("/r/{}", "a".repeat(KEY_BYTES_MAX + 1));
        assert_eq!(key(&long), Err(TargetError::KeyTooLong(KEY_BYTES_MAX + 1)));
    }

    proptest! {
        #[test]
        fn any_key_survives_its_encoding(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(key(&format!("/r/{encoded}")), Ok(bytes));
        }

        #[test]
        fn a_plain_path_is_parsed_alike(path in "/?[a-z/%2]{0,8}") {
            if let Some((region, key)) = plain(&path) {
                let target = Target { region: region.to_owned(), key: Some(Bytes::copy_from_slice(key)) };
                prop_assert_eq!(Target::parse(&path), Ok(target));
            }
        }

        #[test]
        fn no_path_makes_it_panic(path in any::<String>()) {
            let _ = (Target::parse(&path), plain(&path));
        }
    }
}
