use crate::rules::Scalar;
use sqlparser::{
    ast::{
        BinaryOperator, CastKind, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments,
        UnaryOperator, Value as Sql,
    },
    dialect::GenericDialect,
    parser::{Parser, ParserError},
    tokenizer::Token,
};

use super::{Arithmetic, Compare, EXPRESSION_BYTES_MAX, Expression, FUNCTIONS, Function, Node, Type};

/// How deep an expression may be nested: what the parser takes of a thread's stack for it.
const PARSED_DEPTH_MAX: usize = 16;
/// The same once it is read: a chain of `AND` is deep as well.
const DEPTH_MAX: usize = 64;

pub(super) fn expression(text: &str) -> Result<Expression, String> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(format!("an expression has at most {EXPRESSION_BYTES_MAX} bytes"));
    }
    let expr = parsed(text).map_err(|error| match error {
        ParserError::TokenizerError(words) | ParserError::ParserError(words) => words,
        ParserError::RecursionLimitExceeded => "the expression is nested too deep".to_owned(),
    })?;
    let mut compiler = Compiler { metrics: Vec::new(), depth: 0 };
    let (root, of) = compiler.node(&expr)?;
    if !matches!(of, Type::Boolean | Type::Any) {
        return Err(format!("an expression is true or false; this one is a {}", of.name()));
    }
    if compiler.metrics.is_empty() {
        return Err("the expression names no metric".into());
    }
    Ok(Expression { text: expr.to_string().into(), metrics: compiler.metrics, root })
}

fn parsed(text: &str) -> Result<Expr, ParserError> {
    let mut parser =
        Parser::new(&GenericDialect {}).with_recursion_limit(PARSED_DEPTH_MAX).try_with_sql(text)?;
    let expr = parser.parse_expr()?;
    match parser.peek_token().token {
        Token::EOF => Ok(expr),
        more => {
            Err(ParserError::ParserError(format!("cannot read the expression at {:?}", more.to_string())))
        }
    }
}

struct Compiler {
    metrics: Vec<Box<str>>,
    depth: usize,
}

type Typed = (Node, Type);

impl Compiler {
    fn node(&mut self, expr: &Expr) -> Result<Typed, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("the expression is nested too deep".into());
        }
        let node = self.inner(expr);
        self.depth -= 1;
        node
    }

    fn inner(&mut self, expr: &Expr) -> Result<Typed, String> {
        match expr {
            Expr::Nested(inner) => self.node(inner),
            // As in SQL: without quotes the case does not matter, and a metric's name is in lower case.
            Expr::Identifier(name) => Ok(self.metric(&match name.quote_style {
                Some(_) => name.value.clone(),
                None => name.value.to_lowercase(),
            })),
            Expr::Value(value) => literal(&value.value),
            Expr::UnaryOp { op, expr: of } => self.unary(*op, of),
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right),
            Expr::IsNull(of) => self.is(of, None, false),
            Expr::IsNotNull(of) => self.is(of, None, true),
            Expr::IsTrue(of) => self.is(of, Some(true), false),
            Expr::IsNotTrue(of) => self.is(of, Some(true), true),
            Expr::IsFalse(of) => self.is(of, Some(false), false),
            Expr::IsNotFalse(of) => self.is(of, Some(false), true),
            Expr::Between { expr: of, negated, low, high } => {
                let least = self.compare(Compare::GreaterOrEqual, of, low)?;
                let most = self.compare(Compare::LessOrEqual, of, high)?;
                Ok(not_if(*negated, Node::And(Box::new(least), Box::new(most))))
            }
            Expr::InList { expr: of, list, negated } => {
                let (node, of_type) = self.node(of)?;
                let list = list.iter().map(|item| {
                    let (item, item_type) = self.node(item)?;
                    alike(of_type, item_type)?;
                    Ok(item)
                });
                let list = list.collect::<Result<_, String>>()?;
                Ok((Node::In { of: Box::new(node), list, negated: *negated }, Type::Boolean))
            }
            Expr::Like { negated, any: false, expr: of, pattern, escape_char: None } => {
                let Expr::Value(pattern) = &**pattern else {
                    return Err("LIKE takes a text in quotes".into());
                };
                let Sql::SingleQuotedString(pattern) = &pattern.value else {
                    return Err("LIKE takes a text in quotes".into());
                };
                let of = Box::new(self.of_type(of, Type::Text)?);
                Ok((Node::Like { of, pattern: pattern.as_str().into(), negated: *negated }, Type::Boolean))
            }
            Expr::Case { operand, conditions, else_result, .. } => {
                let mut arms = Vec::with_capacity(conditions.len());
                let mut whole = Type::Any;
                for arm in conditions {
                    let when = match operand {
                        Some(operand) => self.compare(Compare::Equal, operand, &arm.condition)?,
                        None => self.of_type(&arm.condition, Type::Boolean)?,
                    };
                    let (then, then_type) = self.node(&arm.result)?;
                    whole = alike(whole, then_type)?;
                    arms.push((when, then));
                }
                let (otherwise, otherwise_type) = match else_result {
                    Some(result) => self.node(result)?,
                    None => (Node::Literal(None), Type::Any),
                };
                whole = alike(whole, otherwise_type)?;
                Ok((Node::Case { arms, otherwise: Box::new(otherwise) }, whole))
            }
            Expr::Cast { kind: CastKind::Cast, expr: of, data_type, array: false, format: None } => {
                let to = type_of(data_type)?;
                let (of, _) = self.node(of)?;
                Ok((Node::Cast(to, Box::new(of)), to))
            }
            Expr::Ceil { expr: of, .. } => self.call("ceil", &[of]),
            Expr::Floor { expr: of, .. } => self.call("floor", &[of]),
            Expr::Trim { trim_where: None, trim_what: None, expr: of, trim_characters: None } => {
                self.call("trim", &[of])
            }
            Expr::Substring { expr: of, substring_from: Some(from), substring_for, .. } => {
                let arguments: Vec<&Expr> =
                    [&**of, &**from].into_iter().chain(substring_for.as_deref()).collect();
                self.call("substring", &arguments)
            }
            Expr::Function(function) => {
                let FunctionArguments::List(list) = &function.args else {
                    return Err(format!("{} needs its arguments in brackets", function.name));
                };
                let is_plain = function.filter.is_none()
                    && function.over.is_none()
                    && function.within_group.is_empty()
                    && list.duplicate_treatment.is_none()
                    && list.clauses.is_empty();
                if !is_plain {
                    return Err(format!("{} is used as more than a scalar function", function.name));
                }
                let arguments = list.args.iter().map(|argument| match argument {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Ok(expr),
                    other => Err(format!("{other} is no scalar argument")),
                });
                let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
                self.call(&function.name.to_string().to_lowercase(), &arguments)
            }
            other => {
                Err(format!("`{other}` is no part of the rules' expressions; docs/rules.md lists what is"))
            }
        }
    }

    fn metric(&mut self, name: &str) -> Typed {
        let known = self.metrics.iter().position(|metric| **metric == *name);
        let number = known.unwrap_or_else(|| {
            self.metrics.push(name.into());
            self.metrics.len() - 1
        });
        (Node::Metric(number), Type::Any)
    }

    fn of_type(&mut self, expr: &Expr, wanted: Type) -> Result<Node, String> {
        let (node, found) = self.node(expr)?;
        let fits = match wanted {
            Type::Double => found.is_number(),
            wanted => found == Type::Any || wanted == Type::Any || found == wanted,
        };
        match fits {
            true => Ok(node),
            false => Err(format!("`{expr}` is a {}, and a {} is needed", found.name(), wanted.name())),
        }
    }

    fn is(&mut self, of: &Expr, value: Option<bool>, negated: bool) -> Result<Typed, String> {
        let of = match value {
            None => self.node(of)?.0,
            Some(_) => self.of_type(of, Type::Boolean)?,
        };
        Ok((Node::Is { of: Box::new(of), value, negated }, Type::Boolean))
    }

    fn unary(&mut self, op: UnaryOperator, of: &Expr) -> Result<Typed, String> {
        match op {
            UnaryOperator::Not => Ok((Node::Not(Box::new(self.of_type(of, Type::Boolean)?)), Type::Boolean)),
            UnaryOperator::Plus => Ok((self.of_type(of, Type::Double)?, Type::Any)),
            UnaryOperator::Minus => {
                let (node, of_type) = self.node(of)?;
                match node {
                    Node::Literal(Some(Scalar::I64(v))) => {
                        Ok((Node::Literal(Some(Scalar::I64(v.wrapping_neg()))), of_type))
                    }
                    Node::Literal(Some(Scalar::F64(v))) => {
                        Ok((Node::Literal(Some(Scalar::F64(-v))), of_type))
                    }
                    node if of_type.is_number() => Ok((Node::Negative(Box::new(node)), of_type)),
                    _ => Err(format!("`{of}` is a {}, and a number is needed", of_type.name())),
                }
            }
            other => Err(format!("`{other}` is no operator of the rules' expressions")),
        }
    }

    fn binary(&mut self, left: &Expr, op: &BinaryOperator, right: &Expr) -> Result<Typed, String> {
        use {Arithmetic as A, BinaryOperator as Op, Compare as C};
        let joined =
            |left, right, join: fn(Box<Node>, Box<Node>) -> Node| join(Box::new(left), Box::new(right));
        let arithmetic = match op {
            Op::And => {
                let sides = (self.of_type(left, Type::Boolean)?, self.of_type(right, Type::Boolean)?);
                return Ok((joined(sides.0, sides.1, Node::And), Type::Boolean));
            }
            Op::Or => {
                let sides = (self.of_type(left, Type::Boolean)?, self.of_type(right, Type::Boolean)?);
                return Ok((joined(sides.0, sides.1, Node::Or), Type::Boolean));
            }
            Op::StringConcat => {
                let sides = (self.of_type(left, Type::Text)?, self.of_type(right, Type::Text)?);
                return Ok((joined(sides.0, sides.1, Node::Concat), Type::Text));
            }
            Op::Eq => return Ok((self.compare(C::Equal, left, right)?, Type::Boolean)),
            Op::NotEq => return Ok((self.compare(C::NotEqual, left, right)?, Type::Boolean)),
            Op::Lt => return Ok((self.compare(C::Less, left, right)?, Type::Boolean)),
            Op::LtEq => return Ok((self.compare(C::LessOrEqual, left, right)?, Type::Boolean)),
            Op::Gt => return Ok((self.compare(C::Greater, left, right)?, Type::Boolean)),
            Op::GtEq => return Ok((self.compare(C::GreaterOrEqual, left, right)?, Type::Boolean)),
            Op::Plus => A::Add,
            Op::Minus => A::Subtract,
            Op::Multiply => A::Multiply,
            Op::Divide => A::Divide,
            Op::Modulo => A::Modulo,
            other => return Err(format!("`{other}` is no operator of the rules' expressions")),
        };
        let ((left_node, left_type), (right_node, right_type)) = (self.node(left)?, self.node(right)?);
        for (side, of) in [(left, left_type), (right, right_type)] {
            if !of.is_number() {
                return Err(format!("`{side}` is a {}, and a number is needed", of.name()));
            }
        }
        let node = Node::Arithmetic(arithmetic, Box::new(left_node), Box::new(right_node));
        Ok((node, alike(left_type, right_type)?))
    }

    fn compare(&mut self, by: Compare, left: &Expr, right: &Expr) -> Result<Node, String> {
        let ((left, left_type), (right, right_type)) = (self.node(left)?, self.node(right)?);
        alike(left_type, right_type)?;
        Ok(Node::Compare(by, Box::new(left), Box::new(right)))
    }

    fn call(&mut self, name: &str, arguments: &[&Expr]) -> Result<Typed, String> {
        let found = FUNCTIONS.iter().find(|(known, ..)| *known == name);
        let Some((_, function, least, most, of, result)) = found else {
            let all: Vec<_> = FUNCTIONS.iter().map(|(name, ..)| *name).collect();
            return Err(format!("there is no function {name:?}; there are {}", all.join(", ")));
        };
        if !(*least..=*most).contains(&arguments.len()) {
            return Err(format!("{name} takes {least} to {most} arguments, not {}", arguments.len()));
        }
        let mut nodes = Vec::with_capacity(arguments.len());
        let mut whole = *result;
        for argument in arguments {
            let node = match function {
                Function::Greatest | Function::Least | Function::Coalesce | Function::NullIf => {
                    let (node, found) = self.node(argument)?;
                    whole = alike(whole, found)?;
                    node
                }
                Function::Substring => {
                    let wanted = if nodes.is_empty() { Type::Text } else { Type::Double };
                    self.of_type(argument, wanted)?
                }
                _ => self.of_type(argument, *of)?,
            };
            nodes.push(node);
        }
        Ok((Node::Call(*function, nodes), whole))
    }
}

/// The type of two that meet: numbers meet as DOUBLE if one of them is.
fn alike(a: Type, b: Type) -> Result<Type, String> {
    match (a, b) {
        (a, b) if a == b => Ok(a),
        (Type::Any, other) | (other, Type::Any) => Ok(other),
        (a, b) if a.is_number() && b.is_number() => Ok(Type::Double),
        (a, b) => Err(format!("a {} and a {} do not go together; CAST one of them", a.name(), b.name())),
    }
}

fn not_if(negated: bool, node: Node) -> Typed {
    let node = if negated { Node::Not(Box::new(node)) } else { node };
    (node, Type::Boolean)
}

fn literal(value: &Sql) -> Result<Typed, String> {
    match value {
        Sql::Number(text, false) => match text.parse::<i64>() {
            Ok(v) => Ok((Node::Literal(Some(Scalar::I64(v))), Type::Bigint)),
            Err(_) => match text.parse::<f64>() {
                Ok(v) if v.is_finite() => Ok((Node::Literal(Some(Scalar::F64(v))), Type::Double)),
                _ => Err(format!("{text} is no number")),
            },
        },
        Sql::SingleQuotedString(text) => {
            Ok((Node::Literal(Some(Scalar::Text(text.as_str().into()))), Type::Text))
        }
        Sql::Boolean(v) => Ok((Node::Literal(Some(Scalar::Bool(*v))), Type::Boolean)),
        Sql::Null => Ok((Node::Literal(None), Type::Any)),
        other => Err(format!("`{other}` is no literal of the rules' expressions")),
    }
}

fn type_of(data_type: &DataType) -> Result<Type, String> {
    match data_type {
        DataType::Double(_) | DataType::DoublePrecision => Ok(Type::Double),
        DataType::BigInt(None) => Ok(Type::Bigint),
        DataType::Boolean => Ok(Type::Boolean),
        DataType::Varchar(None) => Ok(Type::Text),
        other => Err(format!("cast to DOUBLE, BIGINT, BOOLEAN or VARCHAR, not to {other}")),
    }
}
