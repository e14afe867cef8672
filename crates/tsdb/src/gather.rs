use std::collections::{BTreeMap, HashMap};

use dunlin_model::{Timestamp, Value, ValueRef};

use crate::{Aggregate, Query, QueryError, Series};

/// Makes series of rows that come in any order.
#[derive(Debug)]
pub struct Gather {
    query: Query,
    step_micros: i64,
    keys: HashMap<String, HashMap<String, SeriesKey>>,
    series: Vec<Points>,
    sampled: Vec<bool>,
    points: usize,
}

/// A series of one `Gather`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeriesKey(usize);

#[derive(Debug)]
enum Points {
    Raw(Vec<(Timestamp, Value)>),
    Stepped(BTreeMap<i64, Step>),
}

#[derive(Debug)]
struct Step {
    /// Weights of the values, and of those that are numbers.
    count: u64,
    numbers: u64,
    sum: f64,
    min: f64,
    max: f64,
    first: (Timestamp, Value),
    last: (Timestamp, Value),
}

impl Gather {
    pub fn new(query: &Query) -> Result<Self, QueryError> {
        let step_micros = match query.step {
            Some((step, _)) => i64::try_from(step.as_micros()).unwrap_or(i64::MAX),
            None => 0,
        };
        if query.step.is_some() && step_micros == 0 {
            return Err(QueryError::Invalid("the step must be at least a microsecond".into()));
        }
        Ok(Self {
            query: query.clone(),
            step_micros,
            keys: HashMap::new(),
            series: Vec::new(),
            sampled: Vec::new(),
            points: 0,
        })
    }

    /// The series of this metric of this device, new or known.
    pub fn series(&mut self, device: &str, metric: &str) -> SeriesKey {
        if let Some(key) = self.keys.get(device).and_then(|of| of.get(metric)) {
            return *key;
        }
        let key = SeriesKey(self.series.len());
        self.series.push(match self.query.step {
            Some(_) => Points::Stepped(BTreeMap::new()),
            None => Points::Raw(Vec::new()),
        });
        self.sampled.push(false);
        self.keys.entry(device.into()).or_default().insert(metric.into(), key);
        key
    }

    /// Takes a value that stands for `weight` of them; what is outside the query's range is left out.
    pub fn push(
        &mut self,
        to: SeriesKey,
        time: Timestamp,
        value: ValueRef<'_>,
        weight: u32,
    ) -> Result<(), QueryError> {
        if time < self.query.start || time >= self.query.end {
            return Ok(());
        }
        self.sampled[to.0] |= weight > 1;
        match &mut self.series[to.0] {
            Points::Raw(points) => {
                points.push((time, value.to_owned()));
                self.points += 1;
            }
            Points::Stepped(steps) => {
                let start = time.as_micros().div_euclid(self.step_micros).saturating_mul(self.step_micros);
                match steps.entry(start) {
                    std::collections::btree_map::Entry::Occupied(mut step) => {
                        step.get_mut().add(time, value, weight);
                    }
                    std::collections::btree_map::Entry::Vacant(at) => {
                        at.insert(Step::of(time, value, weight));
                        self.points += 1;
                    }
                }
            }
        }
        if self.points > self.query.points_max {
            return Err(QueryError::TooLarge { what: "points", max: self.query.points_max });
        }
        Ok(())
    }

    /// The series that have points, by device and metric, each by time.
    pub fn finish(mut self) -> Vec<Series> {
        let aggregate = self.query.step.map(|(_, aggregate)| aggregate);
        let mut series: Vec<Series> = Vec::with_capacity(self.series.len());
        for (device, metrics) in self.keys {
            for (metric, key) in metrics {
                let points = match std::mem::replace(&mut self.series[key.0], Points::Raw(Vec::new())) {
                    Points::Raw(mut points) => {
                        points.sort_by_key(|(time, _)| *time);
                        points
                    }
                    Points::Stepped(steps) => steps
                        .into_iter()
                        .filter_map(|(start, step)| {
                            Some((Timestamp::from_micros(start), step.value(aggregate?)?))
                        })
                        .collect(),
                };
                if !points.is_empty() {
                    let is_sampled = self.sampled[key.0];
                    series.push(Series { device: device.clone(), metric, points, is_sampled });
                }
            }
        }
        series.sort_by(|a, b| (&a.device, &a.metric).cmp(&(&b.device, &b.metric)));
        series
    }
}

impl Step {
    fn of(time: Timestamp, value: ValueRef<'_>, weight: u32) -> Self {
        let mut step = Self {
            count: 0,
            numbers: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            first: (time, value.to_owned()),
            last: (time, value.to_owned()),
        };
        step.add(time, value, weight);
        step
    }

    fn add(&mut self, time: Timestamp, value: ValueRef<'_>, weight: u32) {
        self.count += u64::from(weight);
        if let Some(number) = value.as_number() {
            self.numbers += u64::from(weight);
            self.sum += number * f64::from(weight);
            self.min = self.min.min(number);
            self.max = self.max.max(number);
        }
        if time < self.first.0 {
            self.first = (time, value.to_owned());
        }
        if time > self.last.0 {
            self.last = (time, value.to_owned());
        }
    }

    fn value(self, aggregate: Aggregate) -> Option<Value> {
        let number = |value: f64| (self.numbers > 0).then_some(Value::F64(value));
        match aggregate {
            Aggregate::Avg => number(self.sum / self.numbers as f64),
            Aggregate::Min => number(self.min),
            Aggregate::Max => number(self.max),
            Aggregate::Sum => number(self.sum),
            Aggregate::Count => Some(Value::I64(self.count as i64)),
            Aggregate::First => Some(self.first.1),
            Aggregate::Last => Some(self.last.1),
        }
    }
}
