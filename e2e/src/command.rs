//! Running other programs to their end.
//!
//! Owns how a failed program is reported: its command line and the last of what it said. Must not start anything that
//! outlives the call (that is `cluster::daemon`).

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a failed program's words an error carries, in bytes.
const TAIL: usize = 4000;

/// `program` with `arguments`, ready for [`run`], [`output`] or [`feed`].
pub fn command<I, A>(program: impl AsRef<std::ffi::OsStr>, arguments: I) -> Command
where
    I: IntoIterator<Item = A>,
    A: AsRef<std::ffi::OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a program that must succeed; what it prints is shown only if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a program that must succeed and returns what it wrote to standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))?;
    finished(command, result)
}

/// As [`output`], with `input` on the program's standard input.
pub fn feed(command: &mut Command, input: &[u8]) -> Result<String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| cannot_start(command))?;
    let stdin = child.stdin.take();
    // Written by a thread of its own: a program may fill its output pipes before it has read all its input.
    let result = std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut stdin) = stdin {
                // A program that stops reading has failed or is content; its exit status says which.
                let _ = stdin.write_all(input);
            }
        });
        child.wait_with_output()
    });
    finished(command, result.with_context(|| cannot_start(command))?)
}

fn cannot_start(command: &Command) -> String {
    format!(
        "cannot start {}: is it installed?",
        command.get_program().to_string_lossy()
    )
}

fn finished(command: &Command, result: Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() {
        let stderr = String::from_utf8_lossy(&result.stderr);
        let line: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect();
        bail!(
            "`{}` failed ({}):\n{}{}",
            line.join(" "),
            result.status,
            tail(&stdout),
            tail(&stderr)
        );
    }
    Ok(stdout)
}

/// The last part of `text`, cut at a character's border.
pub fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = run(&mut command("sh", ["-c", "echo the disk is full >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the disk is full") && error.contains('3'),
            "{error}"
        );
    }

    #[test]
    fn input_larger_than_a_pipe_does_not_block() {
        let input = vec![b'x'; 1 << 20];
        assert_eq!(
            feed(&mut command("cat", [""; 0]), &input).unwrap().len(),
            input.len()
        );
    }

    #[test]
    fn the_tail_is_cut_between_characters() {
        assert!(tail(&"ü".repeat(TAIL)).chars().all(|c| c == 'ü'));
    }
}
