//! How a value stands in a JSON document. A node finds it out once, when it keeps the value, so that routers need not for each
//! reader.

/// As what a value can be put into JSON without a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It is JSON, in a region that says that its values are.
    Json,
    /// Between quotes it is a JSON string: printable ASCII without quotes and backslashes.
    Plain,
}

/// Whether values of this media type are JSON.
#[must_use]
pub fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|media| media.trim() == "application/json")
}

impl Form {
    /// The form of a value; `None`: it has to be changed. `is_json`: its region says so. Takes about a microsecond a KiB for
    /// JSON, and a tenth for what is none.
    #[must_use]
    pub fn of(value: &[u8], is_json: bool) -> Option<Self> {
        if is_json && serde_json::from_slice::<&serde_json::value::RawValue>(value).is_ok() {
            return Some(Self::Json);
        }
        is_plain(value).then_some(Self::Plain)
    }

    /// A form as a number below four.
    #[must_use]
    pub const fn number(form: Option<Self>) -> u8 {
        match form {
            None => 0,
            Some(Self::Json) => 1,
            Some(Self::Plain) => 2,
        }
    }

    /// The form of a number. Gives none for what is none.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Json),
            2 => Some(Self::Plain),
            _ => None,
        }
    }
}

/// Whether these bytes stand in a JSON string as they are. Without a way out in the middle, so that many bytes are looked at
/// together.
#[must_use]
pub fn is_plain(bytes: &[u8]) -> bool {
    let is_plain = |byte: u8| (b' '..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\');
    bytes.iter().fold(true, |all, &byte| all & is_plain(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_json_only_where_it_is_said_to_be() {
        for (value, in_json, elsewhere) in [
            (&br#"{"a": 1.50}"#[..], Some(Form::Json), None),
            (b"12", Some(Form::Json), Some(Form::Plain)),
            (b"{broken", Some(Form::Plain), Some(Form::Plain)),
            (b"\xff", None, None),
            (b"a\nb", None, None),
            (b"", Some(Form::Plain), Some(Form::Plain)),
        ] {
            assert_eq!((Form::of(value, true), Form::of(value, false)), (in_json, elsewhere), "{value:?}");
        }
        assert!(is_json("application/json; charset=utf-8") && !is_json("application/jsonl") && !is_json(""));
    }

    proptest! {
        #[test]
        fn what_is_plain_is_a_json_string_between_quotes(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let quoted = [b"\"", &bytes[..], b"\""].concat();
            let is_same = serde_json::from_slice::<String>(&quoted).is_ok_and(|text| text.as_bytes() == bytes);
            prop_assert!(is_same || !is_plain(&bytes));
        }
    }
}
