//! The queue file by itself: what stays, what is refused, and who writes at the same time.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use serde_json::json;

use super::*;

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let lab = Self(tempfile::tempdir().expect("made"));
        std::fs::create_dir(lab.0.path().join("aside")).expect("made");
        lab
    }

    fn path(&self) -> PathBuf {
        self.0.path().canonicalize().expect("there").join("queue.json")
    }

    fn place(&self) -> Place {
        Place::of(&self.path(), &self.0.path().join("aside"), true).expect("opened")
    }

    fn write(&self, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(), text).expect("written");
    }

    fn read(&self) -> String {
        std::fs::read_to_string(self.path()).expect("readable")
    }

    fn nothing_is_left_aside(&self) {
        assert_eq!(std::fs::read_dir(self.0.path().join("aside")).expect("readable").count(), 0);
        let names = std::fs::read_dir(self.0.path()).expect("readable").count();
        assert!(names <= 2, "aside and the queue");
    }
}

fn request(id: &str) -> Map<String, Value> {
    let value = json!({ "id": id, "status": "pending" });
    value.as_object().expect("an object").clone()
}

fn add(place: &Place, id: &str) -> Result<bool, QueueError> {
    place.change(|queue| {
        if queue.find(id).is_some() {
            return Ok(false);
        }
        queue.put(None, &request(id)).map(|()| true)
    })
}

#[test]
fn what_is_not_ours_stays_byte_for_byte() {
    let lab = Lab::new();
    let theirs =
        "{ \"id\":\"a\",  \"n\": 12345678901234567890123, \"f\": 1.0e2, \"u\": \"\\u00e9\" }";
    lab.write(format!(
        "{{\"zzz\": [1,  2], \"$schema\": \"operator-queue-v1\", \"requests\": [ {theirs} , 7, null], \"aaa\": true}}"
    ));
    std::fs::set_permissions(lab.path(), std::fs::Permissions::from_mode(0o640)).expect("set");
    assert!(add(&lab.place(), "b").expect("added"));
    assert!(!add(&lab.place(), "b").expect("there already"));
    insta::assert_snapshot!(lab.read(), @r#"
    {
      "zzz": [1,  2],
      "$schema": "operator-queue-v1",
      "requests": [
        { "id":"a",  "n": 12345678901234567890123, "f": 1.0e2, "u": "\u00e9" },
        7,
        null,
        {"id":"b","status":"pending"}
      ],
      "aaa": true
    }
    "#);
    let mode = std::fs::metadata(lab.path()).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o640);
    lab.nothing_is_left_aside();
}

#[test]
fn a_missing_file_is_made() {
    let lab = Lab::new();
    assert!(add(&lab.place(), "a").expect("added"));
    let value: Value = serde_json::from_str(&lab.read()).expect("JSON");
    let wanted = json!({ "$schema": SCHEMA, "requests": [{ "id": "a", "status": "pending" }] });
    assert_eq!(value, wanted);
    lab.nothing_is_left_aside();
}

#[test]
fn what_cannot_be_understood_is_left_alone() {
    for text in [
        "",
        "{",
        "[]",
        "null",
        "{} {}",
        "{\"requests\": {}}",
        "{\"requests\": [], \"requests\": []}",
        "{\"$schema\": \"operator-queue-v2\", \"requests\": []}",
        "\u{feff}{}",
    ] {
        let lab = Lab::new();
        lab.write(text);
        let error = add(&lab.place(), "a").expect_err(text);
        assert!(matches!(error, QueueError::NotAQueue(_)), "{text}: {error}");
        assert_eq!(lab.read(), text);
        assert!(lab.place().is_usable().is_err(), "{text}");
        lab.nothing_is_left_aside();
    }
    let lab = Lab::new();
    lab.write([b'"', 0xff, b'"']);
    assert!(matches!(add(&lab.place(), "a"), Err(QueueError::NotAQueue(_))));
}

#[test]
fn the_bound_holds_before_and_after() {
    let lab = Lab::new();
    let padded = |bytes: usize| {
        let frame = "{\"requests\": [], \"pad\": \"\"}";
        format!("{{\"requests\": [], \"pad\": \"{}\"}}", "x".repeat(bytes - frame.len()))
    };
    let limit = usize::try_from(LIMIT).expect("fits");
    lab.write(padded(limit + 1));
    assert!(matches!(add(&lab.place(), "a"), Err(QueueError::TooLarge)));
    lab.write(padded(limit));
    assert!(matches!(add(&lab.place(), "a"), Err(QueueError::Full)));
    assert_eq!(lab.read(), padded(limit));
    lab.nothing_is_left_aside();
}

#[test]
fn no_link_is_followed_and_no_pipe_waited_for() {
    let lab = Lab::new();
    let outside = lab.0.path().join("outside");
    std::fs::write(&outside, "{\"requests\": []}").expect("written");
    symlink(&outside, lab.path()).expect("made");
    assert!(matches!(add(&lab.place(), "a"), Err(QueueError::Link)));
    assert_eq!(std::fs::read_to_string(&outside).expect("readable"), "{\"requests\": []}");
    std::fs::remove_file(lab.path()).expect("removed");

    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, lab.path(), fifo, Mode::RWXU, 0).expect("made");
    assert!(matches!(add(&lab.place(), "a"), Err(QueueError::NotAFile)));
    std::fs::remove_file(lab.path()).expect("removed");
    std::fs::create_dir(lab.path()).expect("made");
    assert!(matches!(add(&lab.place(), "a"), Err(QueueError::NotAFile)));

    let (real, linked) = (lab.0.path().join("real"), lab.0.path().join("linked"));
    std::fs::create_dir(&real).expect("made");
    symlink(&real, &linked).expect("made");
    let aside = lab.0.path().join("aside");
    let of = |path: &Path| Place::of(path, &aside, true);
    assert!(matches!(of(&linked.join("queue.json")), Err(QueueError::Link)));
    assert!(matches!(of(&lab.0.path().join("no/queue.json")), Err(QueueError::NoFolder(_))));
}

#[test]
fn whoever_writes_in_between_loses_nothing() {
    let lab = Lab::new();
    lab.write("{\"requests\": []}");
    let place = lab.place();
    let mut round = 0;
    let done = place.change(|queue| {
        round += 1;
        if round <= 3 {
            // Between our look and our write the platform replaces the file.
            let other = lab.0.path().join("other");
            let ids: Vec<Value> = (0..round).map(|n| json!({ "id": format!("p{n}") })).collect();
            std::fs::write(&other, json!({ "requests": ids }).to_string()).expect("written");
            std::fs::rename(&other, lab.path()).expect("replaced");
        }
        queue.put(None, &request("ours")).map(|()| true)
    });
    assert!(done.expect("added"));
    assert_eq!(round, 4);
    let value: Value = serde_json::from_str(&lab.read()).expect("JSON");
    let ids: Vec<&str> = value["requests"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|request| request["id"].as_str())
        .collect();
    assert_eq!(ids, ["p0", "p1", "p2", "ours"]);
    lab.nothing_is_left_aside();
}

#[test]
fn several_at_once_all_get_in() {
    let lab = Lab::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                let aside = lab.0.path().join("aside").join(thread.to_string());
                std::fs::create_dir(&aside).expect("made");
                let place = Place::of(&lab.path(), &aside, true).expect("opened");
                for n in 0..10 {
                    let id = format!("{thread}-{n}");
                    // Bounded tries may all be lost to the others: then again.
                    while add(&place, &id).is_err() {}
                }
            });
        }
    });
    let value: Value = serde_json::from_str(&lab.read()).expect("JSON");
    assert_eq!(value["requests"].as_array().expect("a list").len(), 40);
}

#[test]
fn what_came_in_the_last_moment_goes_back() {
    let lab = Lab::new();
    lab.write("theirs");
    let place = lab.place();
    let aside = File::open(lab.0.path().join("aside")).expect("opened").into();
    let new = OsStr::new("new");
    let before = Found { bytes: b"as it was read".to_vec(), mode: MODE, owner: (0, 0) };
    write(&aside, new, b"ours", None).expect("written");
    assert!(!place.exchange(&aside, new, b"ours", Some(&before)).expect("exchanged twice"));
    assert_eq!(lab.read(), "theirs");
    let left = std::fs::read(lab.0.path().join("aside/new")).expect("readable");
    assert_eq!(left, b"ours");
    // One that is made in the last moment stays too, and one that goes is not made anew.
    assert!(!place.exchange(&aside, new, b"ours", None).expect("there is one"));
    std::fs::remove_file(lab.path()).expect("removed");
    assert!(!place.exchange(&aside, new, b"ours", Some(&before)).expect("there is none"));
    assert!(!lab.path().exists());
}
