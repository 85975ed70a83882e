//! The chart's values as a user gave them, and what is wrong with them.
//!
//! Owns the reading of `--set` and `-f` (far enough to check them: Helm itself gets them unchanged) and every check that
//! can be made without a cluster. Pure: nothing here does input or output.
//! Invariant: what passes [`Values::check`] passes the chart's own schema and templates, and is refused here in one
//! sentence that names the value, what it is, and what it may be.

mod nearest;
mod scaling;
mod schema;
mod set;

#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

pub(crate) use scaling::{Component, Scaling};
pub(crate) use schema::Schema;

/// The canonical prefix of the values.
pub(crate) const CANONICAL: &str = "OpenServiceMesh";
/// The later spelling of [`CANONICAL`].
pub(crate) const ALIAS: &str = "osm";

/// What is wrong with the values, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ValueError(pub(crate) String);

/// Makes a [`ValueError`] of a format string.
macro_rules! refuse {
    ($($arg:tt)*) => { $crate::values::ValueError(format!($($arg)*)) };
}
use refuse;

/// The chart's defaults and what the user gave.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    defaults: Value,
    explicit: Value,
}

impl Values {
    /// Reads the chart's `values.yaml`, then the user's files (name and text) and `--set` arguments, in Helm's order.
    pub(crate) fn read(
        defaults: &str,
        files: &[(String, String)],
        sets: &[String],
    ) -> Result<Values, ValueError> {
        let defaults = parse("the chart's values.yaml", defaults)?;
        let mut explicit = Value::Object(Map::new());
        for (name, text) in files {
            overlay(&mut explicit, parse(name, text)?);
        }
        for text in sets {
            set::apply(&mut explicit, text)?;
        }
        Ok(Values { defaults, explicit })
    }

    /// The value at a path below the prefix, as it will be in force; null when there is none.
    pub(crate) fn get(&self, path: &str) -> Value {
        [
            (&self.explicit, ALIAS),
            (&self.explicit, CANONICAL),
            (&self.defaults, CANONICAL),
        ]
        .into_iter()
        .find_map(|(tree, prefix)| lookup(tree, prefix, path))
        .cloned()
        .unwrap_or(Value::Null)
    }

    /// The value at a path below the prefix, if the user gave it.
    pub(crate) fn explicit(&self, path: &str) -> Option<&Value> {
        lookup(&self.explicit, ALIAS, path).or_else(|| lookup(&self.explicit, CANONICAL, path))
    }

    /// Every check of the values. Returns warnings: what is allowed but hardly meant.
    pub(crate) fn check(&self, schema: &Schema) -> Result<Vec<String>, ValueError> {
        schema.check(&self.explicit)?;
        self.contradictions()?;
        let mut warnings = Vec::new();
        for component in [Component::Controller, Component::Injector] {
            let scaling = Scaling::read(self, component);
            scaling.check()?;
            warnings.extend(scaling.warning());
        }
        self.provider()?;
        warnings.extend(self.without_effect());
        Ok(warnings)
    }

    /// Refuses a value that is given in both spellings, differently.
    fn contradictions(&self) -> Result<(), ValueError> {
        if let (Some(canonical), Some(alias)) = (self.explicit.get(CANONICAL), self.explicit.get(ALIAS)) {
            differing(canonical, alias, "").map_or(Ok(()), |(path, one, other)| {
                Err(refuse!(
                    "{CANONICAL}.{path} is {one} but {ALIAS}.{path}, the same value, is {other}: give one of them only"
                ))
            })?;
        }
        for component in [Component::Controller, Component::Injector] {
            let early = format!("{}.autoScale.targetAverageUtilization", component.key());
            let later = format!("{}.autoScale.cpu.targetAverageUtilization", component.key());
            if let (Some(one), Some(other)) = (self.explicit(&early), self.explicit(&later))
                && one != other
            {
                return Err(refuse!(
                    "{CANONICAL}.{early} is {one} but {CANONICAL}.{later}, the same value, is {other}: \
                     give one of them only"
                ));
            }
        }
        Ok(())
    }

    /// Refuses a certificate provider that lacks what it needs.
    fn provider(&self) -> Result<(), ValueError> {
        if self.get("certificateProvider.kind") != "vault" {
            return Ok(());
        }
        let empty = |path: &str| self.get(path).as_str().is_none_or(str::is_empty);
        if empty("vault.host") {
            return Err(refuse!(
                "{CANONICAL}.vault.host is empty: certificateProvider.kind=vault needs it"
            ));
        }
        if empty("vault.token") && empty("vault.secret.name") {
            return Err(refuse!(
                "{CANONICAL}.vault.token and vault.secret.name are empty: certificateProvider.kind=vault needs one of them"
            ));
        }
        if !empty("vault.secret.name") && empty("vault.secret.key") {
            return Err(refuse!(
                "{CANONICAL}.vault.secret.key is empty: vault.secret.name needs it"
            ));
        }
        Ok(())
    }

    /// Values that ask for something the chart no longer brings.
    fn without_effect(&self) -> Vec<String> {
        [
            "deployPrometheus",
            "deployGrafana",
            "deployJaeger",
            "enableFluentbit",
            "enableReconciler",
        ]
        .into_iter()
        .filter(|path| self.get(path) == Value::Bool(true))
        .map(|path| format!("{CANONICAL}.{path} has no effect: the chart does not bring that component"))
        .collect()
    }
}

/// Reads YAML; an empty text is an empty map.
fn parse(name: &str, text: &str) -> Result<Value, ValueError> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| {
        let error = error.to_string();
        let line = error
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or_default();
        refuse!("{name} is not YAML: {}", line.trim_start_matches("error: "))
    })?;
    match value {
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Object(_) => Ok(value),
        _ => Err(refuse!(
            "{name} is not a map of values: it should begin with `{CANONICAL}:`"
        )),
    }
}

/// Lays `over` over `under`, as Helm does: maps are merged, everything else is replaced.
fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                overlay(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

/// The value at a dotted path below a prefix.
fn lookup<'a>(tree: &'a Value, prefix: &str, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(tree.get(prefix)?, |value, key| value.get(key))
}

/// The first path at which two trees both say something, and something different.
fn differing<'a>(one: &'a Value, other: &'a Value, at: &str) -> Option<(String, &'a Value, &'a Value)> {
    match (one, other) {
        (Value::Object(left), Value::Object(right)) => left.iter().find_map(|(key, value)| {
            let path = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            differing(value, right.get(key)?, &path)
        }),
        _ => (one != other).then(|| (at.to_owned(), one, other)),
    }
}
