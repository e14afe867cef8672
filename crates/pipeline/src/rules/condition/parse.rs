//! From text to a condition.

use std::time::Duration;

use winnow::{
    ModalResult, Parser,
    ascii::{dec_uint, float, multispace0},
    combinator::{alt, cut_err, delimited, not, opt, peek, preceded, separated, terminated},
    error::{ContextError, ErrMode, StrContext, StrContextValue},
    stream::Stateful,
    token::{one_of, take_till, take_while},
};

use super::{
    Aggregate, Comparator, Condition, DEPTH_MAX, DURATION_MAX, Over, Subject, TESTS_MAX, Test, Threshold,
    Tree, Wrong,
};
use crate::rules::fence::{Position, Shape};

/// The text, and the tests found so far.
type Input<'a> = Stateful<&'a str, Found>;

#[derive(Debug, Clone, Default)]
struct Found {
    tests: Vec<Test>,
    depth: usize,
}

/// Words that join; a metric of such a name is quoted.
pub(super) fn is_word(name: &str) -> bool {
    matches!(name, "and" | "or" | "not" | "for" | "clear")
}

pub(super) fn condition(text: &str) -> Result<Condition, Wrong> {
    let input = Stateful { input: text, state: Found::default() };
    whole.parse(input).map_err(|error| {
        let expected = error.inner().to_string().replace('\n', "; ");
        let at = error.offset();
        let found = match text.get(at..).map(str::trim_start) {
            None | Some("") => "the end".to_owned(),
            Some(rest) => format!("{:?}", rest.chars().take(20).collect::<String>()),
        };
        let message = match expected.is_empty() {
            true => format!("cannot read the condition at {found}"),
            false => format!("{expected}, found {found}"),
        };
        Wrong { at_byte: at, message }
    })
}

pub(super) fn whole_duration(text: &str) -> Option<Duration> {
    duration.parse(Stateful { input: text.trim(), state: Found::default() }).ok()
}

fn whole(input: &mut Input<'_>) -> ModalResult<Condition> {
    multispace0(input)?;
    let tree = any(input)?;
    let hold = opt(preceded(word("for"), cut_err(duration))).parse_next(input)?;
    let _ = opt((',', multispace0)).parse_next(input)?;
    let mut tests = std::mem::take(&mut input.state.tests);
    if let [Test::Compare { threshold, .. }] = &mut tests[..]
        && threshold.clear.is_none()
    {
        threshold.clear = clear(threshold.comparator, input)?;
    }
    if !input.input.is_empty() {
        return expected("`and`, `or`, `for`, `clear` or the end");
    }
    Ok(Condition::new(tests, tree, hold.unwrap_or_default()))
}

fn any(input: &mut Input<'_>) -> ModalResult<Tree> {
    joined(input, "or", all, Tree::Any)
}

fn all(input: &mut Input<'_>) -> ModalResult<Tree> {
    joined(input, "and", one, Tree::All)
}

fn joined(
    input: &mut Input<'_>,
    by: &'static str,
    part: fn(&mut Input<'_>) -> ModalResult<Tree>,
    join: fn(Vec<Tree>) -> Tree,
) -> ModalResult<Tree> {
    let mut parts = vec![part(input)?];
    while opt(word(by)).parse_next(input)?.is_some() {
        parts.push(cut_err(part).parse_next(input)?);
    }
    Ok(if parts.len() == 1 { parts.remove(0) } else { join(parts) })
}

fn one(input: &mut Input<'_>) -> ModalResult<Tree> {
    if opt(word("not")).parse_next(input)?.is_some() {
        return deeper(input, one).map(|tree| Tree::Not(Box::new(tree)));
    }
    if opt(('(', multispace0)).parse_next(input)?.is_some() {
        let tree = deeper(input, any)?;
        close(input)?;
        return Ok(tree);
    }
    let test = test(input)?;
    if input.state.tests.len() >= TESTS_MAX {
        return expected("fewer tests: a condition has at most 32");
    }
    input.state.tests.push(test);
    Ok(Tree::Test((input.state.tests.len() - 1) as u16))
}

fn deeper(input: &mut Input<'_>, part: fn(&mut Input<'_>) -> ModalResult<Tree>) -> ModalResult<Tree> {
    input.state.depth += 1;
    if input.state.depth >= DEPTH_MAX {
        return expected("less nesting: a condition is at most 16 deep");
    }
    let tree = cut_err(part).parse_next(input)?;
    input.state.depth -= 1;
    Ok(tree)
}

fn test(input: &mut Input<'_>) -> ModalResult<Test> {
    if opt((word("no"), word("data"))).parse_next(input)?.is_some() {
        let metric = opt(in_brackets(metric)).parse_next(input)?;
        let after = lasting(input)?;
        return Ok(Test::NoData { metric, after });
    }
    if opt(called("stuck")).parse_next(input)?.is_some() {
        let metric = cut_err(metric).parse_next(input)?;
        close(input)?;
        let after = lasting(input)?;
        return Ok(Test::Stuck { metric, after });
    }
    if opt(called("position")).parse_next(input)?.is_some() {
        return cut_err(fence).parse_next(input);
    }
    let subject =
        alt((rate, aggregated, metric.map(|metric| Subject::Reading { metric }))).parse_next(input)?;
    let comparator = comparator(input)?;
    let value = cut_err(number).parse_next(input)?;
    let clear = clear(comparator, input)?;
    Ok(Test::Compare { subject, threshold: Threshold { comparator, value, clear } })
}

fn lasting(input: &mut Input<'_>) -> ModalResult<Duration> {
    cut_err(preceded(word("for"), duration))
        .context(described("`for` and a duration, as in `for 10m`"))
        .parse_next(input)
}

fn fence(input: &mut Input<'_>) -> ModalResult<Test> {
    let latitude = metric(input)?;
    comma(input)?;
    let longitude = metric(input)?;
    close(input)?;
    let inside = alt((word("inside").value(true), word("outside").value(false)))
        .context(described("`inside` or `outside`"))
        .parse_next(input)?;
    let shape = alt((circle, polygon))
        .context(described("circle(LATITUDE LONGITUDE, METRESm) or polygon(LATITUDE LONGITUDE, ...)"))
        .parse_next(input)?;
    Ok(Test::Fence { latitude, longitude, inside, shape })
}

fn circle(input: &mut Input<'_>) -> ModalResult<Shape> {
    called("circle").parse_next(input)?;
    let centre = cut_err(position).parse_next(input)?;
    cut_err(comma).parse_next(input)?;
    let metres = cut_err(terminated(number, word("m")))
        .context(described("a radius in metres, as in 500m"))
        .parse_next(input)?;
    close(input)?;
    Ok(Shape::Circle { centre, metres })
}

fn polygon(input: &mut Input<'_>) -> ModalResult<Shape> {
    called("polygon").parse_next(input)?;
    let corners = cut_err(separated(1.., position, comma)).parse_next(input)?;
    close(input)?;
    Ok(Shape::Polygon(corners))
}

fn position(input: &mut Input<'_>) -> ModalResult<Position> {
    let (latitude, longitude) = (number, number)
        .context(described("a latitude and a longitude, as in 52.52 13.405"))
        .parse_next(input)?;
    Ok(Position { latitude, longitude })
}

fn rate(input: &mut Input<'_>) -> ModalResult<Subject> {
    called("rate").parse_next(input)?;
    let metric = cut_err(metric).parse_next(input)?;
    close(input)?;
    let per = opt(preceded(word("per"), cut_err(duration))).parse_next(input)?;
    Ok(Subject::Rate { metric, per: per.unwrap_or(Duration::from_secs(1)) })
}

fn aggregated(input: &mut Input<'_>) -> ModalResult<Subject> {
    let aggregate = terminated(aggregate, ('(', multispace0)).parse_next(input)?;
    let metric = cut_err(metric).parse_next(input)?;
    close(input)?;
    let over = cut_err(preceded(word("over"), over))
        .context(described("`over` and a duration, as in `over 1m`"))
        .parse_next(input)?;
    Ok(Subject::Window { metric, aggregate, over })
}

fn over(input: &mut Input<'_>) -> ModalResult<Over> {
    if opt(word("sliding")).parse_next(input)?.is_some() {
        return duration.map(|size| Over::Sliding { size }).parse_next(input);
    }
    if opt(word("session")).parse_next(input)?.is_some() {
        return duration.map(|gap| Over::Session { gap }).parse_next(input);
    }
    let size = duration(input)?;
    let every = opt(preceded(word("every"), cut_err(duration))).parse_next(input)?;
    Ok(Over::Fixed { size, every: every.unwrap_or(size) })
}

fn aggregate(input: &mut Input<'_>) -> ModalResult<Aggregate> {
    terminated(
        alt((
            "avg".value(Aggregate::Avg),
            "min".value(Aggregate::Min),
            "max".value(Aggregate::Max),
            "sum".value(Aggregate::Sum),
            "count".value(Aggregate::Count),
            "first".value(Aggregate::First),
            "last".value(Aggregate::Last),
            "range".value(Aggregate::Range),
            "change".value(Aggregate::Change),
        )),
        multispace0,
    )
    .parse_next(input)
}

fn metric(input: &mut Input<'_>) -> ModalResult<Box<str>> {
    let bare = (
        one_of(|c: char| c.is_alphabetic() || c == '_'),
        take_while(0.., |c: char| c.is_alphanumeric() || c == '_' || c == '-'),
    )
        .take()
        .verify(|name: &str| !is_word(name));
    let double = ('"', take_till(1.., '"'), '"').map(|(_, name, _)| name);
    let single = ('\'', take_till(1.., '\''), '\'').map(|(_, name, _)| name);
    terminated(alt((double, single, bare)), multispace0)
        .context(described("a metric, as in temperature or 'battery.voltage'"))
        .map(Into::into)
        .parse_next(input)
}

fn comparator(input: &mut Input<'_>) -> ModalResult<Comparator> {
    terminated(
        alt((
            ">=".value(Comparator::GreaterOrEqual),
            "<=".value(Comparator::LessOrEqual),
            "==".value(Comparator::Equal),
            "!=".value(Comparator::NotEqual),
            ">".value(Comparator::Greater),
            "<".value(Comparator::Less),
        )),
        multispace0,
    )
    .context(described("one of > >= < <= == !="))
    .parse_next(input)
}

fn number(input: &mut Input<'_>) -> ModalResult<f64> {
    terminated(float.verify(|n: &f64| n.is_finite()), multispace0)
        .context(described("a number"))
        .parse_next(input)
}

fn duration(input: &mut Input<'_>) -> ModalResult<Duration> {
    let unit = alt((
        "ms".value(1),
        "s".value(1_000),
        "m".value(60_000),
        "h".value(3_600_000),
        "d".value(86_400_000),
    ));
    terminated((dec_uint::<_, u64, _>, unit), multispace0)
        .verify_map(|(count, millis): (u64, u64)| count.checked_mul(millis).map(Duration::from_millis))
        .verify(|d| !d.is_zero() && *d <= DURATION_MAX)
        .context(described("a duration of at most 366d, as in 500ms, 30s, 5m, 2h or 1d"))
        .parse_next(input)
}

fn clear(comparator: Comparator, input: &mut Input<'_>) -> ModalResult<Option<f64>> {
    if opt(word("clear")).parse_next(input)?.is_none() {
        return Ok(None);
    }
    let side = match comparator {
        Comparator::Less | Comparator::LessOrEqual => "above",
        _ => "below",
    };
    cut_err(word(side))
        .context(StrContext::Expected(StrContextValue::StringLiteral(side)))
        .parse_next(input)?;
    cut_err(number).map(Some).parse_next(input)
}

/// A word of the language, and what separates it from the next.
fn word<'a>(word: &'static str) -> impl Parser<Input<'a>, (), ErrMode<ContextError>> {
    let end = peek(not(one_of(|c: char| c.is_alphanumeric() || c == '_' || c == '-')));
    (word, end, multispace0).void()
}

/// A word and an opening bracket.
fn called<'a>(name: &'static str) -> impl Parser<Input<'a>, (), ErrMode<ContextError>> {
    (name, multispace0, '(', multispace0).void()
}

fn in_brackets<'a, T>(
    of: impl Parser<Input<'a>, T, ErrMode<ContextError>>,
) -> impl Parser<Input<'a>, T, ErrMode<ContextError>> {
    delimited(('(', multispace0), of, (')', multispace0))
}

fn close(input: &mut Input<'_>) -> ModalResult<()> {
    cut_err((')', multispace0))
        .context(StrContext::Expected(StrContextValue::CharLiteral(')')))
        .void()
        .parse_next(input)
}

fn comma(input: &mut Input<'_>) -> ModalResult<()> {
    (',', multispace0)
        .context(StrContext::Expected(StrContextValue::CharLiteral(',')))
        .void()
        .parse_next(input)
}

fn described(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

fn expected<T>(what: &'static str) -> ModalResult<T> {
    let mut error = ContextError::new();
    error.push(described(what));
    Err(ErrMode::Cut(error))
}
