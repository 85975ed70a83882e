//! The chart's `values.schema.json`, read well enough to refuse in one sentence what it refuses.
//!
//! Knows the part of JSON schema that the file uses: `$ref`, `type`, `properties`, `additionalProperties`, `required`,
//! `items`, `enum`, `minimum`, `maximum`, `minLength`, `maxLength`, `pattern`; `description` says what a pattern means.

use regex::Regex;
use serde_json::Value;

use super::nearest::nearest;
use super::{ValueError, refuse};

/// The schema of the chart's values.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    root: Value,
}

impl Schema {
    /// Reads the schema's JSON.
    pub(crate) fn read(text: &str) -> Result<Schema, ValueError> {
        serde_json::from_str(text)
            .map(|root| Schema { root })
            .map_err(|error| refuse!("the chart's values.schema.json is not JSON: {error}"))
    }

    /// Checks what the user gave.
    pub(crate) fn check(&self, values: &Value) -> Result<(), ValueError> {
        self.walk(&self.root, values, "")
    }

    /// Follows a `$ref` into the schema's definitions.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| self.root.pointer(reference.trim_start_matches('#')))
            .unwrap_or(schema)
    }

    fn walk(&self, schema: &Value, value: &Value, at: &str) -> Result<(), ValueError> {
        let schema = self.resolve(schema);
        // Helm drops a key that is null, so that the chart's default does not count either.
        if value.is_null() && !at.is_empty() {
            return Ok(());
        }
        check_type(schema, value, at)?;
        check_enum(schema, value, at)?;
        check_range(schema, value, at)?;
        check_text(schema, value, at)?;
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if at.is_empty() {
                        key.clone()
                    } else {
                        format!("{at}.{key}")
                    };
                    if let Some(property) = schema.pointer("/properties").and_then(|known| known.get(key)) {
                        self.walk(property, value, &path)?;
                        continue;
                    }
                    match schema.get("additionalProperties") {
                        Some(Value::Bool(false)) => return Err(self.unknown(schema, key, &path)),
                        Some(others) if others.is_object() => self.walk(others, value, &path)?,
                        _ => {}
                    }
                }
                let required = schema
                    .get("required")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten();
                for key in required.filter_map(Value::as_str) {
                    if !map.contains_key(key) {
                        return Err(refuse!("{at} has no {key}, which it needs"));
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.walk(schema, item, &format!("{at}[{index}]"))?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The refusal of a key that the chart does not know, with the one that was probably meant.
    fn unknown(&self, schema: &Value, key: &str, path: &str) -> ValueError {
        let known = keys(schema);
        let parent = path.strip_suffix(key).unwrap_or_default();
        if let Some(near) = nearest(key, known.iter().copied()) {
            return refuse!("{path} is not a value of the chart: did you mean {parent}{near}?");
        }
        let mut elsewhere = Vec::new();
        self.find(&self.root, key, "", &mut elsewhere);
        match elsewhere.as_slice() {
            [] => refuse!(
                "{path} is not a value of the chart: known there are {}",
                known.join(", ")
            ),
            places => refuse!(
                "{path} is not a value of the chart: did you mean {}?",
                places.join(" or ")
            ),
        }
    }

    /// The paths, in the canonical spelling, whose last key is `key`.
    fn find(&self, schema: &Value, key: &str, at: &str, found: &mut Vec<String>) {
        let schema = self.resolve(schema);
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            if at.is_empty() && name != super::CANONICAL {
                continue;
            }
            let path = if at.is_empty() {
                name.clone()
            } else {
                format!("{at}.{name}")
            };
            if name == key {
                found.push(path.clone());
            }
            self.find(property, key, &path, found);
        }
    }
}

/// The keys an object may have.
fn keys(schema: &Value) -> Vec<&str> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
        .collect()
}

fn check_type(schema: &Value, value: &Value, at: &str) -> Result<(), ValueError> {
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        _ => value.is_null(),
    };
    if types.iter().any(|name| is(name)) {
        return Ok(());
    }
    let wanted: Vec<&str> = types
        .iter()
        .filter(|name| **name != "null")
        .map(|name| match *name {
            "object" => "a map",
            "array" => "a list",
            "string" => "a text",
            "boolean" => "true or false",
            "integer" => "a whole number",
            other => other,
        })
        .collect();
    Err(refuse!("{at} is {value}: it must be {}", wanted.join(" or ")))
}

fn check_enum(schema: &Value, value: &Value, at: &str) -> Result<(), ValueError> {
    let Some(allowed) = schema.get("enum").and_then(Value::as_array) else {
        return Ok(());
    };
    if allowed.contains(value) {
        return Ok(());
    }
    let allowed: Vec<String> = allowed
        .iter()
        .map(|value| match value.as_str() {
            Some("") => "empty".to_owned(),
            Some(text) => text.to_owned(),
            None => value.to_string(),
        })
        .collect();
    Err(refuse!(
        "{at} is {value}: it must be one of {}",
        allowed.join(", ")
    ))
}

fn check_range(schema: &Value, value: &Value, at: &str) -> Result<(), ValueError> {
    let Some(number) = value.as_f64() else {
        return Ok(());
    };
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let (low, high) = (bound("minimum"), bound("maximum"));
    if low.is_none_or(|low| number >= low) && high.is_none_or(|high| number <= high) {
        return Ok(());
    }
    Err(match (low, high) {
        (Some(low), Some(high)) => refuse!("{at} is {value}: it must be from {low} to {high}"),
        (Some(low), None) => refuse!("{at} is {value}: it must be at least {low}"),
        (_, high) => refuse!("{at} is {value}: it must be at most {}", high.unwrap_or_default()),
    })
}

fn check_text(schema: &Value, value: &Value, at: &str) -> Result<(), ValueError> {
    let Some(text) = value.as_str() else { return Ok(()) };
    let length = text.chars().count() as u64;
    let bound = |name: &str| schema.get(name).and_then(Value::as_u64);
    let pattern = schema.get("pattern").and_then(Value::as_str);
    let matches = match pattern.map(Regex::new) {
        Some(Ok(pattern)) => pattern.is_match(text),
        _ => true,
    };
    if matches
        && bound("minLength").is_none_or(|low| length >= low)
        && bound("maxLength").is_none_or(|high| length <= high)
    {
        return Ok(());
    }
    let wanted = match (schema.get("description").and_then(Value::as_str), pattern) {
        (Some(description), _) => description.to_owned(),
        (None, Some(pattern)) => format!("text that matches {pattern}"),
        (None, None) if text.is_empty() => "a text that is not empty".to_owned(),
        (None, None) => "a shorter text".to_owned(),
    };
    Err(refuse!("{at} is {value}: it must be {wanted}"))
}
