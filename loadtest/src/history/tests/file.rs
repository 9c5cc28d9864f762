//! What is recorded, and what becomes of it in a file.

use std::fs;
use std::thread;

use super::*;

#[test]
fn a_line_is_as_documented_and_reads_back() {
    let documented = [
        (
            write(3, "w17", (123, 456)),
            r#"{"client":3,"key":"k","op":"write","value":"w17","invoked_us":123,"returned_us":456,"outcome":"ok"}"#,
        ),
        (
            read(1, None, (120, 460)),
            r#"{"client":1,"key":"k","op":"read","value":null,"invoked_us":120,"returned_us":460,"outcome":"ok"}"#,
        ),
        (
            Operation { returned_us: None, ..unknown(delete(2, (9, 0))) },
            r#"{"client":2,"key":"k","op":"delete","value":null,"invoked_us":9,"returned_us":null,"outcome":"unknown"}"#,
        ),
        (
            failed(operation(2, Call::Read, (1, 1), Outcome::Failed)),
            r#"{"client":2,"key":"k","op":"read","value":null,"invoked_us":1,"returned_us":1,"outcome":"failed"}"#,
        ),
    ];
    for (operation, line) in documented {
        assert_eq!(serde_json::to_string(&operation).expect("operations are JSON"), line);
        assert_eq!(serde_json::from_str::<Operation>(line).expect("it is documented"), operation);
    }
}

#[test]
fn lines_that_make_no_sense_are_refused_by_number() {
    let fine = r#"{"client":1,"key":"k","op":"read","invoked_us":1,"returned_us":2,"outcome":"ok"}"#;
    let wrong = [
        r#"{"client":1,"key":"k","op":"write","invoked_us":1,"returned_us":2,"outcome":"ok"}"#,
        r#"{"client":1,"key":"k","op":"delete","value":"a","invoked_us":1,"returned_us":2,"outcome":"ok"}"#,
        r#"{"client":1,"key":"k","op":"read","value":"a","invoked_us":1,"returned_us":2,"outcome":"failed"}"#,
        r#"{"client":1,"key":"k","op":"read","invoked_us":1,"outcome":"ok"}"#,
        r#"{"client":1,"key":"k","op":"read","invoked_us":2,"returned_us":1,"outcome":"ok"}"#,
        r#"{"client":1,"key":"k","op":"read","invoked_us":1,"returned_us":2,"outcome":"ok","more":1}"#,
        "",
    ];
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history.jsonl");
    for wrong in wrong {
        fs::write(&path, format!("{fine}\n{wrong}\n")).expect("a file");
        let error = super::super::read(&path).expect_err("the second line is wrong");
        assert!(matches!(error, ReadError::Line { line: 2, .. }), "{error}");
    }
}

#[test]
fn a_recorded_history_is_the_one_in_the_file_and_unended_calls_are_unknown() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history.jsonl");
    let recorder = Recorder::create(&path).expect("a file");
    thread::scope(|scope| {
        for client in 0..8 {
            let recorder = &recorder;
            scope.spawn(move || {
                let key = format!("k{client}");
                recorder.begin(client, &key, Call::Read).end(Outcome::Found(None));
                recorder.begin(client, &key, Call::Write("a \"b\"\n".to_owned())).end(Outcome::Done);
                recorder.begin(client, &key, Call::Read).end(Outcome::Found(Some("a \"b\"\n".to_owned())));
                recorder.begin(client, &key, Call::Delete).end(Outcome::Failed);
                drop(recorder.begin(client, &key, Call::Delete));
            });
        }
    });
    let operations = recorder.finish().expect("the file is written");
    assert_eq!(super::super::read(&path).expect("a history"), operations);
    let checked = check(&operations).expect("each client has a key for itself");
    // How long segments are depends on the clock.
    let expected = Checked { reads: 16, writes: 8, failed: 8, unknown: 8, keys: 8, ..checked };
    assert_eq!(checked, expected);
    let never: Vec<_> = operations.iter().filter(|operation| operation.returned_us.is_none()).collect();
    assert_eq!(never.len(), 8);
    assert!(never.iter().all(|operation| operation.outcome == Outcome::Unknown && operation.call == Call::Delete));
}

#[test]
#[should_panic(expected = "cannot end as")]
fn a_call_must_not_end_like_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let recorder = Recorder::create(&directory.path().join("history.jsonl")).expect("a file");
    recorder.begin(1, "k", Call::Read).end(Outcome::Done);
}
