//! `avg(temperature) over 1m every 30s > 80 for 2m, clear below 75`
//!
//! ```text
//! condition  = any [ "for" duration ] [ [","] clear ]
//! any        = all { "or" all }
//! all        = one { "and" one }
//! one        = "not" one | "(" any ")" | test
//! test       = subject comparator number [ clear ]
//!            | "no data" [ "(" metric ")" ] "for" duration
//!            | "stuck" "(" metric ")" "for" duration
//!            | "position" "(" metric "," metric ")" ("inside" | "outside") shape
//! subject    = metric
//!            | aggregate "(" metric ")" "over" ( duration [ "every" duration ] | "sliding" duration | "session" duration )
//!            | "rate" "(" metric ")" [ "per" duration ]
//! clear      = "clear" ("above" | "below") number
//! shape      = "circle" "(" number number "," number "m" ")" | "polygon" "(" number number { "," number number } ")"
//! aggregate  = "avg" | "min" | "max" | "sum" | "count" | "first" | "last" | "range" | "change"
//! comparator = ">" | ">=" | "<" | "<=" | "==" | "!="
//! metric     = letter { letter | digit | "_" | "-" } | '"' any '"' | "'" any "'"
//! duration   = number ("ms" | "s" | "m" | "h" | "d")
//! ```

mod parse; // the text above

use std::{fmt, time::Duration};

use dunlin_model::MetricName;

use super::{
    expression::Expression,
    fence::{Position, Shape},
    schedule::Schedule,
};

/// The finest step of a window.
const WINDOW_EVERY_MIN: Duration = Duration::from_secs(1);
/// Steps in one window, at the most: its memory, per device.
const WINDOW_STEPS_MAX: u32 = 1_440;
/// The longest duration a rule may name.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Tests in one condition, at the most.
pub(super) const TESTS_MAX: usize = 32;
/// How deep a condition may be nested.
const DEPTH_MAX: usize = 16;
const CORNERS_MAX: usize = 256;

/// When a rule holds, and when it ceases to: tests of a device's readings, joined by a tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// In the order of the text.
    pub tests: Vec<Test>,
    pub tree: Tree,
    /// How long it must hold without a break before it fires.
    pub hold: Duration,
    /// Whether what it says comes from windows that end: between them nothing is known.
    pub has_windows: bool,
    /// Whether a test looks at several readings, or at the hour.
    pub settles: bool,
}

/// How tests are joined; they are named by their number.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    Test(u16),
    All(Vec<Tree>),
    Any(Vec<Tree>),
    Not(Box<Tree>),
}

/// One thing that is looked at.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    Compare {
        subject: Subject,
        threshold: Threshold,
    },
    /// Nothing came for so long: of a metric, or anything at all.
    NoData {
        metric: Option<Box<str>>,
        after: Duration,
    },
    /// Readings came, for so long, and were all the same.
    Stuck {
        metric: Box<str>,
        after: Duration,
    },
    Fence {
        latitude: Box<str>,
        longitude: Box<str>,
        inside: bool,
        shape: Shape,
    },
    Expression(Expression),
    During(Schedule),
}

/// What is compared with a number.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// Every reading by itself.
    Reading {
        metric: Box<str>,
    },
    Window {
        metric: Box<str>,
        aggregate: Aggregate,
        over: Over,
    },
    /// How much the reading differs from the one before it, for each `per` between them.
    Rate {
        metric: Box<str>,
        per: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    pub comparator: Comparator,
    pub value: f64,
    /// Where it clears; `None`: as soon as the comparison is false.
    pub clear: Option<f64>,
}

/// Which readings are taken together, in event time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Over {
    /// Aligned to 1970; `every` is from the start of one window to that of the next, and `size` a multiple of it.
    Fixed { size: Duration, every: Duration },
    /// The last readings up to and with each reading.
    Sliding { size: Duration },
    /// Readings with less than `gap` between them.
    Session { gap: Duration },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    Avg,
    Min,
    Max,
    Sum,
    Count,
    First,
    Last,
    /// The greatest less the least.
    Range,
    /// The last less the first.
    Change,
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
        let condition = parse::condition(text)?;
        condition.check().map_err(|message| Wrong { at_byte: 0, message })?;
        Ok(condition)
    }

    /// An expression is a condition of one test.
    pub(super) fn of_expression(expression: Expression, hold: Duration) -> Self {
        Self::new(vec![Test::Expression(expression)], Tree::Test(0), hold)
    }

    fn new(tests: Vec<Test>, tree: Tree, hold: Duration) -> Self {
        let has_windows = tests.iter().any(Test::is_window);
        let settles = tests.iter().any(Test::settles);
        Self { tests, tree, hold, has_windows, settles }
    }

    /// The condition, but only in these hours.
    pub(super) fn during(mut self, schedule: Schedule) -> Self {
        let test = Tree::Test(self.tests.len() as u16);
        self.tests.push(Test::During(schedule));
        Self::new(self.tests, Tree::All(vec![self.tree, test]), self.hold)
    }

    /// Metrics that it names, and whether it looks at every record.
    pub fn inputs(&self) -> impl Iterator<Item = Option<&str>> {
        self.tests.iter().flat_map(Test::inputs)
    }

    /// Whether it also says something of a device that says nothing.
    pub fn watches_silence(&self) -> bool {
        self.tests.iter().any(|test| matches!(test, Test::NoData { .. }))
    }

    /// What a value is compared with, if that is one number.
    pub fn threshold(&self) -> Option<f64> {
        self.tests.iter().find_map(|test| match test {
            Test::Compare { threshold, .. } => Some(threshold.value),
            _ => None,
        })
    }

    fn check(&self) -> Result<(), String> {
        if self.tests.len() > TESTS_MAX {
            return Err(format!("a condition has at most {TESTS_MAX} tests"));
        }
        if self.tree.depth() > DEPTH_MAX {
            return Err(format!("a condition is nested at most {DEPTH_MAX} deep"));
        }
        for metric in self.inputs().flatten() {
            MetricName::check(metric).map_err(|e| e.to_string())?;
        }
        self.tests.iter().try_for_each(Test::check)
    }
}

impl Tree {
    fn depth(&self) -> usize {
        match self {
            Self::Test(_) => 1,
            Self::All(of) | Self::Any(of) => 1 + of.iter().map(Self::depth).max().unwrap_or(0),
            Self::Not(of) => 1 + of.depth(),
        }
    }
}

impl Test {
    /// The metrics whose readings it wants, in order; `None` stands for every record.
    pub fn inputs(&self) -> Vec<Option<&str>> {
        match self {
            Self::Compare { subject, .. } => vec![Some(subject.metric())],
            Self::NoData { metric, .. } => vec![metric.as_deref()],
            Self::Stuck { metric, .. } => vec![Some(metric)],
            Self::Fence { latitude, longitude, .. } => vec![Some(latitude), Some(longitude)],
            Self::Expression(expression) => expression.metrics().iter().map(|m| Some(&**m)).collect(),
            Self::During(_) => Vec::new(),
        }
    }

    pub fn is_window(&self) -> bool {
        let Self::Compare { subject: Subject::Window { over, .. }, .. } = self else { return false };
        !matches!(over, Over::Sliding { .. })
    }

    fn settles(&self) -> bool {
        matches!(self, Self::Fence { .. } | Self::Expression(_) | Self::During(_))
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Compare { subject, threshold } => {
                if let Subject::Window { over, .. } = subject {
                    over.check()?;
                }
                threshold.check()
            }
            Self::Fence { shape: Shape::Circle { centre, metres }, .. } => {
                match centre.is_on_earth() && *metres > 0.0 {
                    true => Ok(()),
                    false => Err("a circle has a centre on earth (latitude longitude) and a radius".into()),
                }
            }
            Self::Fence { shape: Shape::Polygon(corners), .. } => match corners.len() {
                3..=CORNERS_MAX if corners.iter().all(Position::is_on_earth) => Ok(()),
                3..=CORNERS_MAX => Err("a corner is not on earth; write latitude longitude".into()),
                _ => Err(format!("a polygon has 3 to {CORNERS_MAX} corners")),
            },
            Self::NoData { .. } | Self::Stuck { .. } | Self::Expression(_) | Self::During(_) => Ok(()),
        }
    }
}

impl Subject {
    pub fn metric(&self) -> &str {
        match self {
            Self::Reading { metric } | Self::Window { metric, .. } | Self::Rate { metric, .. } => metric,
        }
    }
}

impl Over {
    fn check(&self) -> Result<(), String> {
        let (size, every) = match self {
            Self::Fixed { size, every } => (*size, *every),
            Self::Sliding { size } | Self::Session { gap: size } => (*size, *size),
        };
        if every < WINDOW_EVERY_MIN {
            return Err("a window is at least 1s long, and so is its step".into());
        }
        if every > size || !size.as_micros().is_multiple_of(every.as_micros()) {
            return Err("`over` must be a multiple of `every`".into());
        }
        if size.as_micros() / every.as_micros() > u128::from(WINDOW_STEPS_MAX) {
            return Err(format!("`over` has at most {WINDOW_STEPS_MAX} times the length of `every`"));
        }
        Ok(())
    }
}

impl Threshold {
    fn check(&self) -> Result<(), String> {
        use Comparator::*;
        match (self.comparator, self.clear) {
            (Greater | GreaterOrEqual, Some(clear)) if clear > self.value => {
                Err("it would clear while it still holds: `clear below` must not exceed the threshold".into())
            }
            (Less | LessOrEqual, Some(clear)) if clear < self.value => {
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
            Comparator::Greater => value > self.value,
            Comparator::GreaterOrEqual => value >= self.value,
            Comparator::Less => value < self.value,
            Comparator::LessOrEqual => value <= self.value,
            Comparator::Equal => value == self.value,
            Comparator::NotEqual => value != self.value,
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

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hold = |f: &mut fmt::Formatter<'_>| match self.hold.is_zero() {
            true => Ok(()),
            false => write!(f, " for {}", Short(self.hold)),
        };
        // Of a single comparison, what clears it stands last.
        if let ([Test::Compare { subject, threshold }], Tree::Test(_)) = (&self.tests[..], &self.tree) {
            write!(f, "{subject} {} {}", threshold.comparator.as_str(), threshold.value)?;
            hold(f)?;
            if threshold.clear.is_some() {
                write!(f, ",{}", Clear(threshold))?;
            }
            return Ok(());
        }
        self.tree.write(&self.tests, false, f)?;
        hold(f)
    }
}

impl Tree {
    fn write(&self, tests: &[Test], nested: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |of: &[Self], word: &str, f: &mut fmt::Formatter<'_>| {
            f.write_str(if nested { "(" } else { "" })?;
            for (n, tree) in of.iter().enumerate() {
                f.write_str(if n == 0 { "" } else { word })?;
                tree.write(tests, true, f)?;
            }
            f.write_str(if nested { ")" } else { "" })
        };
        match self {
            Self::Test(n) => match tests.get(usize::from(*n)) {
                Some(test) => write!(f, "{test}"),
                None => Ok(()),
            },
            Self::All(of) => join(of, " and ", f),
            Self::Any(of) => join(of, " or ", f),
            Self::Not(of) => {
                f.write_str("not ")?;
                of.write(tests, true, f)
            }
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compare { subject, threshold } => {
                write!(f, "{subject} {} {}", threshold.comparator.as_str(), threshold.value)?;
                if threshold.clear.is_some() {
                    write!(f, "{}", Clear(threshold))?;
                }
                Ok(())
            }
            Self::NoData { metric: None, after } => write!(f, "no data for {}", Short(*after)),
            Self::NoData { metric: Some(metric), after } => {
                write!(f, "no data({}) for {}", Metric(metric), Short(*after))
            }
            Self::Stuck { metric, after } => write!(f, "stuck({}) for {}", Metric(metric), Short(*after)),
            Self::Fence { latitude, longitude, inside, shape } => {
                let side = if *inside { "inside" } else { "outside" };
                write!(f, "position({}, {}) {side} {shape}", Metric(latitude), Metric(longitude))
            }
            Self::Expression(expression) => write!(f, "{expression}"),
            Self::During(schedule) => write!(f, "during {schedule}"),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reading { metric } => write!(f, "{}", Metric(metric)),
            Self::Rate { metric, per } => write!(f, "rate({}) per {}", Metric(metric), Short(*per)),
            Self::Window { metric, aggregate, over } => {
                write!(f, "{}({}) over {over}", aggregate.as_str(), Metric(metric))
            }
        }
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { size, every } if size == every => write!(f, "{}", Short(*size)),
            Self::Fixed { size, every } => write!(f, "{} every {}", Short(*size), Short(*every)),
            Self::Sliding { size } => write!(f, "sliding {}", Short(*size)),
            Self::Session { gap } => write!(f, "session {}", Short(*gap)),
        }
    }
}

/// What clears a comparison.
struct Clear<'a>(&'a Threshold);

impl fmt::Display for Clear<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.clear, self.0.comparator) {
            (None, _) => Ok(()),
            (Some(clear), Comparator::Less | Comparator::LessOrEqual) => write!(f, " clear above {clear}"),
            (Some(clear), _) => write!(f, " clear below {clear}"),
        }
    }
}

/// Quoted where the language needs it.
struct Metric<'a>(&'a str);

impl fmt::Display for Metric<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.0.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && self.0.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
            && !parse::is_word(self.0);
        if plain { f.write_str(self.0) } else { write!(f, "\"{}\"", self.0) }
    }
}

/// A duration in the largest unit that says it without a rest.
pub(crate) struct Short(pub(crate) Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
        let (size, unit) =
            units.into_iter().find(|(size, _)| millis.is_multiple_of(*size)).unwrap_or((1, "ms"));
        write!(f, "{}{unit}", millis / size)
    }
}

/// `30s`, `2h`, `90d`: what the language takes for a duration.
pub fn duration(text: &str) -> Option<Duration> {
    parse::whole_duration(text)
}

impl Aggregate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Avg => "avg",
            Self::Min => "min",
            Self::Max => "max",
            Self::Sum => "sum",
            Self::Count => "count",
            Self::First => "first",
            Self::Last => "last",
            Self::Range => "range",
            Self::Change => "change",
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
