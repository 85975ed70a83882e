//! The program and its chart from outside: what is refused, what the real helm renders, what the documents say.
#![allow(clippy::unwrap_used)]

mod arguments;
mod chart;
mod helm;
mod misuse;
mod roles;
mod values_doc;
