//! Places on the earth, and whether a position is in them.

use std::fmt;

/// Mean radius, in metres.
const EARTH_METRES: f64 = 6_371_008.8;

/// Degrees, latitude first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    pub latitude: f64,
    pub longitude: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Circle {
        centre: Position,
        metres: f64,
    },
    /// Corners in order; the last is joined to the first. Edges are straight in degrees, which is right for yards and
    /// cities; across the date line, longitudes are taken the short way round from the first corner.
    Polygon(Vec<Position>),
}

impl Position {
    pub fn is_on_earth(&self) -> bool {
        self.latitude.abs() <= 90.0 && self.longitude.abs() <= 180.0
    }

    /// Great-circle distance.
    pub fn metres_to(self, other: Self) -> f64 {
        let (a, b) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half = |degrees: f64| (degrees.to_radians() / 2.0).sin().powi(2);
        let h =
            half(other.latitude - self.latitude) + a.cos() * b.cos() * half(other.longitude - self.longitude);
        2.0 * EARTH_METRES * h.sqrt().min(1.0).asin()
    }
}

impl Shape {
    pub fn holds(&self, position: Position) -> bool {
        match self {
            Self::Circle { centre, metres } => centre.metres_to(position) <= *metres,
            Self::Polygon(corners) => holds(corners, position),
        }
    }
}

/// Even-odd rule, with longitudes relative to the first corner.
fn holds(corners: &[Position], position: Position) -> bool {
    let Some(first) = corners.first() else { return false };
    let east_of = |p: Position| (p.longitude - first.longitude + 540.0).rem_euclid(360.0) - 180.0;
    let (x, y) = (east_of(position), position.latitude);
    let mut is_in = false;
    for (n, corner) in corners.iter().enumerate() {
        let next = corners[(n + 1) % corners.len()];
        let (x1, y1, x2, y2) = (east_of(*corner), corner.latitude, east_of(next), next.latitude);
        if (y1 > y) != (y2 > y) && x < (x2 - x1) * (y - y1) / (y2 - y1) + x1 {
            is_in = !is_in;
        }
    }
    is_in
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circle { centre, metres } => {
                write!(f, "circle({} {}, {metres}m)", centre.latitude, centre.longitude)
            }
            Self::Polygon(corners) => {
                f.write_str("polygon(")?;
                for (n, corner) in corners.iter().enumerate() {
                    let separator = if n == 0 { "" } else { ", " };
                    write!(f, "{separator}{} {}", corner.latitude, corner.longitude)?;
                }
                f.write_str(")")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(latitude: f64, longitude: f64) -> Position {
        Position { latitude, longitude }
    }

    #[test]
    fn distances_are_those_of_the_globe() {
        let (berlin, paris) = (at(52.5200, 13.4050), at(48.8566, 2.3522));
        assert!((berlin.metres_to(paris) - 877_460.0).abs() < 1_000.0);
        assert!((at(0.0, 179.9).metres_to(at(0.0, -179.9)) - 22_239.0).abs() < 10.0);
        assert!(Shape::Circle { centre: berlin, metres: 500.0 }.holds(at(52.5230, 13.4050)));
        assert!(!Shape::Circle { centre: berlin, metres: 300.0 }.holds(at(52.5230, 13.4050)));
    }

    #[test]
    fn a_polygon_holds_what_is_inside_also_across_the_date_line() {
        let yard = Shape::Polygon(vec![at(0.0, 0.0), at(0.0, 2.0), at(2.0, 2.0), at(1.0, 1.0), at(2.0, 0.0)]);
        assert!(yard.holds(at(0.5, 1.0)) && yard.holds(at(1.5, 0.2)));
        assert!(!yard.holds(at(1.5, 1.0)) && !yard.holds(at(-0.1, 1.0)));
        let island = Shape::Polygon(vec![at(-1.0, 179.0), at(-1.0, -179.0), at(1.0, -179.0), at(1.0, 179.0)]);
        assert!(island.holds(at(0.0, 180.0)) && island.holds(at(0.0, -179.5)) && !island.holds(at(0.0, 0.0)));
    }
}
