//! `avg(temperature) over 1m every 30s > 80 for 2m, clear below 75`
//!
//! ```text
//! condition  = subject comparator number [ "for" duration ] [ [","] "clear" ("above" | "below") number ]
//! subject    = metric | aggregate "(" metric ")" "over" duration [ "every" duration ]
//! aggregate  = "avg" | "min" | "max" | "sum" | "count" | "last"
//! comparator = ">" | ">=" | "<" | "<=" | "==" | "!="
//! metric     = letter { letter | digit | "_" | "-" } | '"' any '"' | "'" any "'"
//! duration   = number ("ms" | "s" | "m" | "h" | "d")
//! ```

use std::{fmt, time::Duration};

use dunlin_model::MetricName;
use winnow::{
    ModalResult, Parser,
    ascii::{dec_uint, float, multispace0},
    combinator::{alt, cut_err, opt, preceded, terminated},
    error::{ContextError, ErrMode, StrContext, StrContextValue},
    token::{one_of, take_till, take_while},
};

/// The finest step of a window.
pub(super) const WINDOW_EVERY_MIN: Duration = Duration::from_secs(1);
/// Steps in one window, at the most: its memory, per device.
pub(super) const WINDOW_STEPS_MAX: u32 = 1_440;
/// The longest duration a rule may name.
const DURATION_MAX: Duration = Duration::from_secs(366 * 86_400);

/// When a rule holds, and when it ceases to.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    pub metric: Box<str>,
    /// `None`: every reading is looked at by itself.
    pub over: Option<Over>,
    pub comparator: Comparator,
    pub threshold: f64,
    /// How long it must hold without a break before it fires.
    pub hold: Duration,
    /// Where it clears; `None`: as soon as the comparison is false.
    pub clear: Option<f64>,
}

/// A window in event time, aligned to 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Over {
    pub aggregate: Aggregate,
    pub size: Duration,
    /// From the start of one window to that of the next; `size` is a multiple of it.
    pub every: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    Avg,
    Min,
    Max,
    Sum,
    Count,
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparator {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
}

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) at_byte: usize,
    pub(super) message: String,
}

impl Condition {
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let condition = condition.parse(text).map_err(|error| {
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
        })?;
        condition.check().map_err(|message| Wrong { at_byte: 0, message })?;
        Ok(condition)
    }

    fn check(&self) -> Result<(), String> {
        MetricName::check(&self.metric).map_err(|e| e.to_string())?;
        if let Some(over) = &self.over {
            if over.every < WINDOW_EVERY_MIN {
                return Err("a window is at least 1s long, and so is its step".into());
            }
            if over.every > over.size || !over.size.as_micros().is_multiple_of(over.every.as_micros()) {
                return Err("`over` must be a multiple of `every`".into());
            }
            if over.size.as_micros() / over.every.as_micros() > u128::from(WINDOW_STEPS_MAX) {
                return Err(format!("`over` has at most {WINDOW_STEPS_MAX} times the length of `every`"));
            }
        }
        use Comparator::*;
        match (self.comparator, self.clear) {
            (Greater | GreaterOrEqual, Some(clear)) if clear > self.threshold => {
                Err("it would clear while it still holds: `clear below` must not exceed the threshold".into())
            }
            (Less | LessOrEqual, Some(clear)) if clear < self.threshold => {
                Err("it would clear while it still holds: `clear above` must not be under the threshold"
                    .into())
            }
            (Equal | NotEqual, Some(_)) => Err("`clear` goes with >, >=, < and <= only".into()),
            _ => Ok(()),
        }
    }

    /// Whether `value` meets the comparison.
    pub fn holds(&self, value: f64) -> bool {
        match self.comparator {
            Comparator::Greater => value > self.threshold,
            Comparator::GreaterOrEqual => value >= self.threshold,
            Comparator::Less => value < self.threshold,
            Comparator::LessOrEqual => value <= self.threshold,
            Comparator::Equal => value == self.threshold,
            Comparator::NotEqual => value != self.threshold,
        }
    }

    /// Whether a value that does not hold ends what fires.
    pub fn clears(&self, value: f64) -> bool {
        match (self.clear, self.comparator) {
            (Some(clear), Comparator::Greater | Comparator::GreaterOrEqual) => value < clear,
            (Some(clear), _) => value > clear,
            (None, _) => true,
        }
    }
}

fn condition(input: &mut &str) -> ModalResult<Condition> {
    multispace0(input)?;
    let (metric, over) = alt((aggregated, metric.map(|m| (m, None)))).parse_next(input)?;
    let comparator = comparator(input)?;
    let threshold = cut_err(number).parse_next(input)?;
    let hold = opt(preceded(word("for"), cut_err(duration))).parse_next(input)?;
    let _ = opt((',', multispace0)).parse_next(input)?;
    let clear = opt(preceded(word("clear"), cut_err(clear(comparator)))).parse_next(input)?;
    if !input.is_empty() {
        return expected(StrContextValue::Description("`for`, `clear` or the end"));
    }
    Ok(Condition { metric, over, comparator, threshold, hold: hold.unwrap_or_default(), clear })
}

fn aggregated(input: &mut &str) -> ModalResult<(Box<str>, Option<Over>)> {
    let aggregate = terminated(aggregate, ('(', multispace0)).parse_next(input)?;
    let metric = cut_err(metric).parse_next(input)?;
    cut_err((')', multispace0))
        .context(StrContext::Expected(StrContextValue::CharLiteral(')')))
        .parse_next(input)?;
    let size = cut_err(preceded(word("over"), duration))
        .context(StrContext::Expected(StrContextValue::Description("`over` and a duration, as in `over 1m`")))
        .parse_next(input)?;
    let every = opt(preceded(word("every"), cut_err(duration))).parse_next(input)?;
    Ok((metric, Some(Over { aggregate, size, every: every.unwrap_or(size) })))
}

fn aggregate(input: &mut &str) -> ModalResult<Aggregate> {
    terminated(
        alt((
            "avg".value(Aggregate::Avg),
            "min".value(Aggregate::Min),
            "max".value(Aggregate::Max),
            "sum".value(Aggregate::Sum),
            "count".value(Aggregate::Count),
            "last".value(Aggregate::Last),
        )),
        multispace0,
    )
    .parse_next(input)
}

fn metric(input: &mut &str) -> ModalResult<Box<str>> {
    let bare = (
        one_of(|c: char| c.is_alphabetic() || c == '_'),
        take_while(0.., |c: char| c.is_alphanumeric() || c == '_' || c == '-'),
    )
        .take();
    let double = ('"', take_till(1.., '"'), '"').map(|(_, name, _)| name);
    let single = ('\'', take_till(1.., '\''), '\'').map(|(_, name, _)| name);
    terminated(alt((double, single, bare)), multispace0)
        .context(StrContext::Expected(StrContextValue::Description(
            "a metric, as in temperature or 'battery.voltage'",
        )))
        .map(Into::into)
        .parse_next(input)
}

fn comparator(input: &mut &str) -> ModalResult<Comparator> {
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
    .context(StrContext::Expected(StrContextValue::Description("one of > >= < <= == !=")))
    .parse_next(input)
}

fn number(input: &mut &str) -> ModalResult<f64> {
    terminated(float.verify(|n: &f64| n.is_finite()), multispace0)
        .context(StrContext::Expected(StrContextValue::Description("a number")))
        .parse_next(input)
}

fn duration(input: &mut &str) -> ModalResult<Duration> {
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
        .context(StrContext::Expected(StrContextValue::Description(
            "a duration of at most 366d, as in 500ms, 30s, 5m, 2h or 1d",
        )))
        .parse_next(input)
}

fn clear<'a>(comparator: Comparator) -> impl Parser<&'a str, f64, ErrMode<ContextError>> {
    let side = match comparator {
        Comparator::Less | Comparator::LessOrEqual => "above",
        _ => "below",
    };
    move |input: &mut &'a str| {
        word(side).context(StrContext::Expected(StrContextValue::StringLiteral(side))).parse_next(input)?;
        number(input)
    }
}

/// A word of the language, and what separates it from the next.
fn word<'a>(word: &'static str) -> impl Parser<&'a str, (), ErrMode<ContextError>> {
    terminated(word, multispace0).void()
}

fn expected<T>(what: StrContextValue) -> ModalResult<T> {
    let mut error = ContextError::new();
    error.push(StrContext::Expected(what));
    Err(ErrMode::Cut(error))
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metric = Metric(&self.metric);
        match &self.over {
            None => write!(f, "{metric}")?,
            Some(over) => {
                write!(f, "{}({metric}) over {}", over.aggregate.as_str(), Short(over.size))?;
                if over.every != over.size {
                    write!(f, " every {}", Short(over.every))?;
                }
            }
        }
        write!(f, " {} {}", self.comparator.as_str(), self.threshold)?;
        if !self.hold.is_zero() {
            write!(f, " for {}", Short(self.hold))?;
        }
        match (self.clear, self.comparator) {
            (None, _) => Ok(()),
            (Some(clear), Comparator::Less | Comparator::LessOrEqual) => write!(f, ", clear above {clear}"),
            (Some(clear), _) => write!(f, ", clear below {clear}"),
        }
    }
}

/// Quoted where the language needs it.
struct Metric<'a>(&'a str);

impl fmt::Display for Metric<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.0.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && self.0.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
        if plain { f.write_str(self.0) } else { write!(f, "\"{}\"", self.0) }
    }
}

/// A duration in the largest unit that says it without a rest.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
        let (size, unit) =
            units.into_iter().find(|(size, _)| millis.is_multiple_of(*size)).unwrap_or((1, "ms"));
        write!(f, "{}{unit}", millis / size)
    }
}

impl Aggregate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Avg => "avg",
            Self::Min => "min",
            Self::Max => "max",
            Self::Sum => "sum",
            Self::Count => "count",
            Self::Last => "last",
        }
    }
}

impl Comparator {
    fn as_str(self) -> &'static str {
        match self {
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Equal => "==",
            Self::NotEqual => "!=",
        }
    }
}
