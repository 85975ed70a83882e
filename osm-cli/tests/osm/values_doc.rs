//! docs/values.md is made from the chart's values.yaml: its keys, defaults and comments.
//!
//! `UPDATE_DOCS=1 cargo test -p osm-cli values_doc` writes it anew.

use std::fmt::Write;
use std::{env, fs};

const BEGIN: &str = "<!-- begin: made from charts/osm/values.yaml -->\n";
const END: &str = "<!-- end -->\n";

/// A value: its path, its default as YAML, and what it is for.
struct Entry {
    path: String,
    default: String,
    comment: String,
}

/// Reads values.yaml line by line: a comment describes the key after it, and a described key ends the path.
fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut comment = String::new();
    // The indentation of a described map or list, whose lines are its default.
    let mut inside: Option<usize> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if line.is_empty() {
            // What stands between blank lines is no key's description.
            comment.clear();
            continue;
        }
        if inside.is_some_and(|outer| indent > outer && !line.starts_with('#')) {
            if let Some(entry) = entries.last_mut() {
                entry.default = "see the file".to_owned();
            }
            continue;
        }
        if let Some(words) = line.strip_prefix('#') {
            comment = format!("{comment} {}", words.trim()).trim().to_owned();
            inside = None;
            continue;
        }
        let (key, value) = line.split_once(':').expect("a key");
        parents.retain(|(outer, _)| *outer < indent);
        let section = indent == 0 && value.is_empty();
        let described = !section && !comment.is_empty();
        parents.push((indent, key.to_owned()));
        if described {
            let path: Vec<&str> = parents.iter().map(|(_, key)| key.as_str()).collect();
            let default = if value.contains('*') {
                "see the file"
            } else {
                value.trim()
            };
            entries.push(Entry {
                path: path.join("."),
                default: default.to_owned(),
                comment: comment.clone(),
            });
            inside = Some(indent);
        }
        comment.clear();
    }
    entries
}

fn table(text: &str) -> String {
    let mut table = "| value | default | what it is for |\n|---|---|---|\n".to_owned();
    for Entry {
        path,
        default,
        comment,
    } in entries(text)
    {
        let default = if default == "see the file" {
            default
        } else {
            format!("`{default}`")
        };
        writeln!(
            table,
            "| `{path}` | {default} | {} |",
            comment.replace('|', "\\|")
        )
        .expect("text");
    }
    table
}

#[test]
fn the_document_has_every_value() {
    let values = fs::read_to_string(crate::helm::chart().join("values.yaml")).expect("values.yaml");
    let path = crate::helm::checkout("docs/values.md");
    let document = fs::read_to_string(&path).expect("docs/values.md");
    let (before, rest) = document.split_once(BEGIN).expect("where the table begins");
    let (_, after) = rest.split_once(END).expect("where the table ends");
    let expected = format!("{before}{BEGIN}{}{END}{after}", table(&values));
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).expect("docs/values.md can be written");
        return;
    }
    assert!(
        document == expected,
        "docs/values.md is out of date: UPDATE_DOCS=1 cargo test -p osm-cli values_doc"
    );
}

#[test]
fn every_value_has_a_description() {
    let text = fs::read_to_string(crate::helm::chart().join("values.yaml")).expect("values.yaml");
    let described: Vec<String> = entries(&text).into_iter().map(|entry| entry.path).collect();
    let values: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
    let mut bare = Vec::new();
    leaves(&values, "", &described, &mut bare);
    assert!(bare.is_empty(), "without a comment: {bare:?}");
}

/// The values that neither have a description nor are part of one that has.
fn leaves(value: &serde_json::Value, path: &str, described: &[String], bare: &mut Vec<String>) {
    if described.iter().any(|known| known == path) {
        return;
    }
    match value.as_object().filter(|map| !map.is_empty()) {
        Some(map) => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                leaves(value, &path, described, bare);
            }
        }
        None => bare.push(path.to_owned()),
    }
}
