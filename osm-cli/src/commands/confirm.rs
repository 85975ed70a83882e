//! A question before what cannot be taken back.
//!
//! Must not take silence for consent: without an answer nothing is done, and the flag that answers is named.

use std::io::{BufRead, Write};

use anyhow::{Result, bail};

/// How often an answer that is neither yes nor no is asked for again.
const TRIES: usize = 3;

/// Asks a question until it is answered. `flag` is the command's option that does not ask.
///
/// # Errors
/// When nobody answers, or no answer is one.
pub(crate) fn confirm(question: &str, flag: &str, input: &mut impl BufRead) -> Result<bool> {
    for _ in 0..TRIES {
        print!("{question}");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        if input.read_line(&mut answer)? == 0 {
            bail!("Nobody answered: confirm with {flag}");
        }
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "n" | "no" => return Ok(false),
            _ => println!("Invalid input."),
        }
    }
    bail!("No answer was y or n: nothing is done")
}

#[cfg(test)]
mod tests {
    use super::confirm;

    #[test]
    fn only_yes_confirms() {
        for (input, expected) in [
            ("y\n", Some(true)),
            ("what\nYes\n", Some(true)),
            ("n\n", Some(false)),
            ("", None),
            ("a\nb\nc\n", None),
        ] {
            let answer = confirm("?", "--force", &mut input.as_bytes());
            assert_eq!(answer.ok(), expected, "{input:?}");
        }
    }

    #[test]
    fn who_cannot_answer_is_told_the_flag() {
        let error = confirm("?", "--accept", &mut &b""[..]).unwrap_err();
        assert!(error.to_string().contains("--accept"), "{error}");
    }
}
