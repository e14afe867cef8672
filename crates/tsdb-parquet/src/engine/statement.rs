//! What a statement may be before it is parsed. The parser, the planner and the optimizer walk a statement's tree by
//! recursion, and a chain like `1 + 1 + …` is a tree as deep as it is long.

use datafusion::sql::sqlparser::{
    dialect::GenericDialect,
    keywords::Keyword,
    tokenizer::{Token, Tokenizer},
};
use dunlin_tsdb::QueryError;

/// Bytes of one statement.
const STATEMENT_BYTES_MAX: usize = 64 << 10;
/// Operators, brackets and keywords of one statement: each may make its tree one deeper, and the time to plan it grows
/// with the square of that. Lists of values have none.
const OPERATORS_MAX: usize = 2_048;
/// Brackets within brackets.
const NESTING_MAX: usize = 40;

pub(super) fn check(text: &str) -> Result<(), QueryError> {
    let too_large = |what: &str, max: usize| {
        Err(QueryError::Invalid(format!(
            "a statement may have {max} {what} at the most; ask for less at once"
        )))
    };
    if text.len() > STATEMENT_BYTES_MAX {
        return too_large("bytes", STATEMENT_BYTES_MAX);
    }
    let tokens = Tokenizer::new(&GenericDialect, text)
        .tokenize()
        .map_err(|error| QueryError::Invalid(format!("SQL error: {error}")))?;
    if tokens.iter().filter(|token| makes_deeper(token)).count() > OPERATORS_MAX {
        return too_large("operators and keywords", OPERATORS_MAX);
    }
    let mut depth = 0_usize;
    for token in &tokens {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return too_large("brackets within each other", NESTING_MAX);
        }
    }
    Ok(())
}

/// Whatever is neither a name, nor a value, nor between the parts of a list.
fn makes_deeper(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            !matches!(word.keyword, Keyword::NoKeyword | Keyword::TRUE | Keyword::FALSE | Keyword::NULL)
        }
        Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::Whitespace(_)
        | Token::Comma
        | Token::RParen
        | Token::RBracket
        | Token::RBrace
        | Token::SemiColon
        | Token::EOF => false,
        _ => true,
    }
}
