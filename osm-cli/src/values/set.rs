//! Helm's `--set` syntax: `path=value,path=value`, `{a,b}` for lists, `[0]` for their items, `\` before what is meant
//! literally. Invariant: reads what Helm reads; Helm itself is the judge of what is refused here as malformed.

use serde_json::{Map, Value};

use super::{ValueError, refuse};

/// The most items a list may be given by index; Helm's own limit.
const MAX_INDEX: usize = 65_536;

/// One step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Applies one `--set` argument to the values.
pub(super) fn apply(values: &mut Value, text: &str) -> Result<(), ValueError> {
    let malformed = |what: &str| refuse!("invalid format for --set: {text:?} {what}");
    if text.trim().is_empty() {
        return Err(malformed("is empty: write it as KEY=VALUE"));
    }
    let mut rest = Cursor {
        chars: text.chars().collect(),
        at: 0,
    };
    while !rest.done() {
        let (path, ended) = rest.path().map_err(|what| malformed(&what))?;
        if ended != Some('=') {
            return Err(malformed("has no \"=\": write it as KEY=VALUE"));
        }
        let value = rest.value().map_err(|what| malformed(&what))?;
        put(values, &path, value);
    }
    Ok(())
}

/// Where reading has got to.
struct Cursor {
    chars: Vec<char>,
    at: usize,
}

impl Cursor {
    fn done(&self) -> bool {
        self.at >= self.chars.len()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.chars.get(self.at).copied();
        self.at += 1;
        next
    }

    /// Text up to one of `stops`, and the stop; a backslash takes the next character literally.
    fn until(&mut self, stops: &[char]) -> (String, Option<char>) {
        let mut text = String::new();
        while let Some(next) = self.next() {
            if next == '\\' {
                text.extend(self.next());
            } else if stops.contains(&next) {
                return (text, Some(next));
            } else {
                text.push(next);
            }
        }
        (text, None)
    }

    /// A path, and what ended it.
    fn path(&mut self) -> Result<(Vec<Step>, Option<char>), String> {
        let mut path = Vec::new();
        loop {
            let (key, mut stop) = self.until(&['.', '=', ',', '[']);
            // Nothing stands between `]` and what follows it.
            let after_index = key.is_empty() && matches!(path.last(), Some(Step::Index(_)));
            if !after_index {
                if key.is_empty() {
                    return Err("has an empty key: write it as KEY=VALUE".to_owned());
                }
                path.push(Step::Key(key));
            }
            while stop == Some('[') {
                let (index, end) = self.until(&[']']);
                let index = index
                    .trim()
                    .parse::<usize>()
                    .ok()
                    .filter(|index| *index <= MAX_INDEX);
                let (Some(index), Some(_)) = (index, end) else {
                    return Err("has a list index that is not a number within \"[]\"".to_owned());
                };
                path.push(Step::Index(index));
                stop = self.next();
            }
            if stop != Some('.') {
                return Ok((path, stop));
            }
        }
    }

    /// A value: a list in braces, or text up to the next comma.
    fn value(&mut self) -> Result<Value, String> {
        if self.chars.get(self.at) != Some(&'{') {
            let (text, _) = self.until(&[',']);
            return Ok(typed(text));
        }
        self.at += 1;
        let mut items = Vec::new();
        loop {
            let (item, stop) = self.until(&[',', '}']);
            let Some(stop) = stop else {
                return Err("has a list without its closing \"}\"".to_owned());
            };
            if !(item.is_empty() && stop == '}' && items.is_empty()) {
                items.push(typed(item));
            }
            if stop == '}' {
                break;
            }
        }
        match self.next() {
            None | Some(',') => Ok(Value::Array(items)),
            Some(_) => Err("has something after a list's closing \"}\"".to_owned()),
        }
    }
}

/// Helm's types of a `--set` value: true, false, null, whole numbers; else text.
fn typed(text: String) -> Value {
    match text.as_str() {
        _ if text.eq_ignore_ascii_case("true") => Value::Bool(true),
        _ if text.eq_ignore_ascii_case("false") => Value::Bool(false),
        _ if text.eq_ignore_ascii_case("null") => Value::Null,
        "0" => Value::from(0),
        _ if text.starts_with('0') => Value::String(text),
        _ => text.parse::<i64>().map_or(Value::String(text), Value::from),
    }
}

/// Puts a value at a path, making maps and lists on the way.
fn put(tree: &mut Value, path: &[Step], value: Value) {
    let Some((step, rest)) = path.split_first() else {
        *tree = value;
        return;
    };
    match step {
        Step::Key(key) => {
            if !tree.is_object() {
                *tree = Value::Object(Map::new());
            }
            if let Value::Object(map) = tree {
                put(map.entry(key.clone()).or_insert(Value::Null), rest, value);
            }
        }
        Step::Index(index) => {
            if !tree.is_array() {
                *tree = Value::Array(Vec::new());
            }
            if let Value::Array(items) = tree {
                if items.len() <= *index {
                    items.resize(index + 1, Value::Null);
                }
                put(&mut items[*index], rest, value);
            }
        }
    }
}
