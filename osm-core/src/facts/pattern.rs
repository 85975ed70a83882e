//! Regular expressions of users, which Envoy will compile with RE2.
//!
//! Invariant: what [`check`] lets through, RE2 compiles within Envoy's bounds. RE2 itself is not at hand; its grammar
//! (RE2 wiki, "Syntax") is close to that of the `regex-syntax` crate, and what only the latter knows is refused.

use regex_syntax::ast::{self, Ast, Visitor};

/// Longest expression, bytes.
pub const MAX_LENGTH: usize = 1_024;
/// Most repetitions RE2 lets a counted repetition ask for, nested ones multiplied (RE2 `kMaxRepeat`).
const MAX_REPEAT: u64 = 1_000;
/// Largest compiled form, bytes, here: well below RE2's own bound of 8 MiB, because a tenant chooses the expression and
/// everybody's proxies compile it.
const MAX_COMPILED: usize = 1 << 20;

/// Why an expression is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Longer than [`MAX_LENGTH`].
    #[error("is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// Too much to compile.
    #[error("is too large once its repetitions are written out")]
    TooLarge,
    /// Not a regular expression.
    #[error("is not a regular expression: {0}")]
    Syntax(String),
    /// A regular expression, but not one of RE2's.
    #[error("is not understood by RE2: {0}")]
    NotRe2(&'static str),
}

/// Checks that Envoy will accept a regular expression.
///
/// # Errors
/// [`PatternError`] says why not.
pub fn check(text: &str) -> Result<(), PatternError> {
    if text.len() > MAX_LENGTH {
        return Err(PatternError::TooLong);
    }
    if text.contains('\0') {
        return Err(PatternError::NotRe2("a zero byte"));
    }
    let parsed = ast::parse::ParserBuilder::new()
        .nest_limit(100)
        .build()
        .parse(text);
    let parsed = parsed.map_err(|error| PatternError::Syntax(error.kind().to_string()))?;
    ast::visit(&parsed, Re2::default())?;
    compile(text).map(drop)
}

/// The whole-text matcher of a checked expression; `None` for one that does not compile.
pub fn whole(text: &str) -> Option<regex::Regex> {
    compile(text).ok()
}

fn compile(text: &str) -> Result<regex::Regex, PatternError> {
    let compiled = regex::RegexBuilder::new(&format!("^(?:{text})$"))
        .size_limit(MAX_COMPILED)
        .build();
    compiled.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => PatternError::TooLarge,
        other => PatternError::Syntax(other.to_string().lines().last().unwrap_or_default().to_owned()),
    })
}

/// Refuses what RE2 does not know, or reads otherwise.
#[derive(Default)]
struct Re2 {
    /// The counts of the repetitions around what is visited.
    counts: Vec<u64>,
}

impl Visitor for Re2 {
    type Output = ();
    type Err = PatternError;

    fn finish(self) -> Result<(), PatternError> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), PatternError> {
        let refuse = |what| Err(PatternError::NotRe2(what));
        match ast {
            Ast::Flags(set) => flags(&set.flags),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(set) => flags(set),
                ast::GroupKind::CaptureName {
                    starts_with_p: false, ..
                } => refuse("a group named without P"),
                _ => Ok(()),
            },
            Ast::Assertion(assertion) => match assertion.kind {
                ast::AssertionKind::StartLine
                | ast::AssertionKind::EndLine
                | ast::AssertionKind::StartText
                | ast::AssertionKind::EndText
                | ast::AssertionKind::WordBoundary
                | ast::AssertionKind::NotWordBoundary => Ok(()),
                _ => refuse("a half word boundary"),
            },
            Ast::Literal(literal) => self::literal(literal),
            Ast::ClassUnicode(class) => unicode(class),
            Ast::Repetition(repetition) => {
                if matches!(*repetition.ast, Ast::Repetition(_)) {
                    return refuse("a repetition of a repetition");
                }
                let count = match &repetition.op.kind {
                    ast::RepetitionKind::Range(ast::RepetitionRange::Exactly(count))
                    | ast::RepetitionKind::Range(ast::RepetitionRange::AtLeast(count))
                    | ast::RepetitionKind::Range(ast::RepetitionRange::Bounded(_, count)) => {
                        u64::from(*count).max(1)
                    }
                    _ => 1,
                };
                self.counts.push(count);
                let product = self
                    .counts
                    .iter()
                    .try_fold(1_u64, |product, count| product.checked_mul(*count));
                match product {
                    Some(product) if product <= MAX_REPEAT => Ok(()),
                    _ => refuse("more than 1000 repetitions"),
                }
            }
            _ => Ok(()),
        }
    }

    fn visit_post(&mut self, ast: &Ast) -> Result<(), PatternError> {
        if matches!(ast, Ast::Repetition(_)) {
            self.counts.pop();
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), PatternError> {
        match item {
            ast::ClassSetItem::Literal(literal) => self::literal(literal),
            ast::ClassSetItem::Range(range) => self::literal(&range.start).and(self::literal(&range.end)),
            ast::ClassSetItem::Unicode(class) => unicode(class),
            ast::ClassSetItem::Bracketed(_) => Err(PatternError::NotRe2("a class within a class")),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), PatternError> {
        Err(PatternError::NotRe2("an operation on classes"))
    }
}

fn flags(set: &ast::Flags) -> Result<(), PatternError> {
    for item in &set.items {
        match item.kind {
            ast::FlagsItemKind::Negation
            | ast::FlagsItemKind::Flag(
                ast::Flag::CaseInsensitive
                | ast::Flag::MultiLine
                | ast::Flag::DotMatchesNewLine
                | ast::Flag::SwapGreed,
            ) => {}
            ast::FlagsItemKind::Flag(_) => {
                return Err(PatternError::NotRe2("a flag other than i, m, s and U"));
            }
        }
    }
    Ok(())
}

fn literal(literal: &ast::Literal) -> Result<(), PatternError> {
    match literal.kind {
        ast::LiteralKind::HexFixed(ast::HexLiteralKind::UnicodeShort | ast::HexLiteralKind::UnicodeLong)
        | ast::LiteralKind::HexBrace(ast::HexLiteralKind::UnicodeShort | ast::HexLiteralKind::UnicodeLong) => {
            Err(PatternError::NotRe2(r"\u: write \x{...}"))
        }
        _ => Ok(()),
    }
}

/// RE2 knows the general categories and the scripts; only the former are let through, the names of scripts change.
fn unicode(class: &ast::ClassUnicode) -> Result<(), PatternError> {
    const CATEGORIES: [&str; 30] = [
        "Cc", "Cf", "Co", "Cs", "Ll", "Lm", "Lo", "Lt", "Lu", "Mc", "Me", "Mn", "Nd", "Nl", "No", "Pc", "Pd",
        "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "So", "Zl", "Zp", "Zs", "L",
    ];
    let known = match &class.kind {
        ast::ClassUnicodeKind::OneLetter(letter) => "CLMNPSZ".contains(*letter),
        ast::ClassUnicodeKind::Named(name) => CATEGORIES.contains(&&**name),
        ast::ClassUnicodeKind::NamedValue { .. } => false,
    };
    if known {
        Ok(())
    } else {
        Err(PatternError::NotRe2(r"a \p class that is not a general category"))
    }
}

/// Whether an expression speaks of escaped slashes or backslashes: of `%2F` or `%5C`, in capitals or not.
pub fn has_escaped_slash(text: &str) -> bool {
    let escape = |bytes: &[u8]| bytes.eq_ignore_ascii_case(b"%2f") || bytes.eq_ignore_ascii_case(b"%5c");
    text.as_bytes().windows(3).any(escape)
}

/// Whether an expression matches exactly one text, itself.
pub fn is_literal(text: &str) -> bool {
    !text.bytes().any(|byte| b"\\.+*?()|[]{}^$".contains(&byte))
}
