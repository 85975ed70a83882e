//! The shared libraries a program of this machine needs, as the dynamic linker would find them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Layer;
use crate::command::{command, output};

/// Puts the libraries of `program`, where the linker looks for them. A static program needs none.
pub(super) fn add(layer: &mut Layer, program: &Path) -> Result<()> {
    for library in needed(program)? {
        let source = library
            .canonicalize()
            .with_context(|| format!("cannot find {}", library.display()))?;
        layer.copy(&source, place(&library))?;
    }
    Ok(())
}

/// Some systems have `/lib` as a link to `/usr/lib`, and `ldd` names either; images have but one place.
fn place(library: &Path) -> PathBuf {
    if let Ok(rest) = library.strip_prefix("/usr/lib") {
        Path::new("/lib").join(rest)
    } else {
        library.to_owned()
    }
}

fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let told = || format!("cannot list the libraries of {}", program.display());
    let listed = command("ldd", [program]).output().with_context(told)?;
    if !listed.status.success() {
        // The only thing that `ldd` refuses and that is fine.
        if String::from_utf8_lossy(&listed.stderr).contains("not a dynamic executable") {
            return Ok(Vec::new());
        }
        output(&mut command("ldd", [program])).with_context(told)?;
    }
    parse(&String::from_utf8_lossy(&listed.stdout)).with_context(told)
}

/// Lines are `name => path (address)`, `path (address)` for the linker itself, or `name (address)` for the kernel's own.
fn parse(listed: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        if line.ends_with("=> not found") {
            bail!("a library is missing on this machine: {line}");
        }
        let path = line
            .split("=> ")
            .last()
            .unwrap_or(line)
            .split(" (")
            .next()
            .unwrap_or_default();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_line_is_read() {
        let listed = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse(listed).unwrap(), expected);
        assert!(parse("\tlibx.so => not found\n").is_err());
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn this_program_needs_the_c_library() {
        let own = std::env::current_exe().unwrap();
        assert!(
            needed(&own)
                .unwrap()
                .iter()
                .any(|path| path.to_string_lossy().contains("libc.so"))
        );
    }
}
