//! The places of a source file where a small mistake could stand, and what it would look like.

use std::ops::Range;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, Stmt, UnOp};

/// How a mistake stands in place of what is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An expression instead of another.
    Expression,
    /// Nothing instead of a statement.
    Statement,
    /// A return at the start of a function.
    Return,
}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// Path from the root of the repository.
    pub file: String,
    /// The function that it is in, after its type.
    pub function: String,
    /// Line, from 1.
    pub line: usize,
    /// Bytes of the source that it replaces.
    pub range: Range<usize>,
    /// What stands there.
    pub before: String,
    /// What is to stand there.
    pub after: String,
    /// How.
    pub kind: Kind,
}

/// Functions that say how much work something is or ask for memory ahead: no result depends on them. `cases` draws what ops are tested
/// with, and the last four compute what they are compared with there.
const PASSED_OVER: [&str; 9] =
    ["cost", "prefetch", "prefetch_far", "spread", "cases", "composed", "pick", "one_hot", "sum_of_inner"];

/// Calls of `par`, or of what hands it on, and which of their arguments is the amount of work.
const COSTS: [(&str, usize); 6] =
    [("for_each", 1), ("chunks_mut", 2), ("map_chunks", 2), ("spread", 2), ("each", 2), ("rows", 4)];

/// Calls, and which of their arguments is whether several threads may share the work: never a matter of bits.
const THREADS: [(&str, usize); 5] = [("multiply", 5), ("matrix", 3), ("pack_panels", 5), ("product", 4), ("run", 6)];

/// Fields that say what is asked for ahead.
const AHEAD: [&str; 2] = ["next", "next_lines"];

/// The file of what tests draw.
const OF_TESTS: &str = "testing.rs";

/// Methods and intrinsics that are taken for each other.
const TWINS: [(&str, &str); 9] = [
    ("add", "sub"),
    ("mul", "div"),
    ("min", "max"),
    ("lt", "le"),
    ("add_i", "sub_i"),
    ("shl_i", "shr_i"),
    ("unpacklo", "unpackhi"),
    ("floor", "ceil"),
    ("div_ceil", "wrapping_div"),
];

/// Methods without arguments that are forgotten.
const FORGOTTEN: [&str; 9] = ["t", "abs", "exp", "ln", "sqrt", "neg", "rev", "recip", "square"];

/// Every mistake of a file.
pub fn find(file: &str, text: &str) -> syn::Result<Vec<Mutant>> {
    if file.ends_with(OF_TESTS) {
        return Ok(Vec::new());
    }
    let mut finder =
        Finder { file, text, within: Vec::new(), found: Vec::new(), pointers: file.starts_with("kernels") };
    finder.visit_file(&syn::parse_file(text)?);
    Ok(finder.found)
}

struct Finder<'a> {
    file: &'a str,
    text: &'a str,
    within: Vec<String>,
    found: Vec<Mutant>,
    /// Whether `x.add(i)` is an address.
    pointers: bool,
}

/// Code of tests, or of other machines.
fn is_elsewhere(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| match &a.meta {
        syn::Meta::List(list) if a.path().is_ident("cfg") => {
            let condition = list.tokens.to_string();
            condition.contains("test") || condition.starts_with("not")
        }
        _ => a.path().is_ident("test"),
    })
}

impl Finder<'_> {
    fn of(&self, node: &impl Spanned) -> &str {
        &self.text[node.span().byte_range()]
    }

    fn add(&mut self, range: Range<usize>, after: String, kind: Kind) {
        let before = self.text[range.clone()].to_owned();
        if before == after || self.within.iter().any(|name| PASSED_OVER.contains(&name.as_str())) {
            return;
        }
        let line = 1 + self.text[..range.start].matches('\n').count();
        let function = self.within.join("::");
        self.found.push(Mutant { file: self.file.to_owned(), function, line, range, before, after, kind });
    }

    fn instead(&mut self, node: &impl Spanned, after: String) {
        self.add(node.span().byte_range(), after, Kind::Expression);
    }

    /// `node` with the part at `part` replaced.
    fn with(&mut self, node: &impl Spanned, part: &impl Spanned, new: &str) {
        let (whole, part) = (node.span().byte_range(), part.span().byte_range());
        let after = [&self.text[whole.start..part.start], new, &self.text[part.end..whole.end]].concat();
        self.add(whole, after, Kind::Expression);
    }

    fn function(&mut self, name: &syn::Ident, signature: &syn::Signature, block: &syn::Block) {
        if signature.constness.is_some() {
            return;
        }
        self.within.push(name.to_string());
        if !block.stmts.is_empty() {
            let start = block.brace_token.span.open().byte_range().end;
            let nothing = matches!(signature.output, syn::ReturnType::Default);
            let after = if nothing { "return;" } else { "return Default::default();" };
            self.add(start..start, after.to_owned(), Kind::Return);
        }
        visit::visit_block(self, block);
        self.within.pop();
    }

    /// Two neighbours of a list in each other's place.
    fn swaps(&mut self, node: &impl Spanned, list: &syn::punctuated::Punctuated<Expr, syn::Token![,]>) {
        for (a, b) in list.iter().zip(list.iter().skip(1)) {
            if matches!((a, b), (Expr::Closure(_), _) | (_, Expr::Closure(_))) {
                continue;
            }
            let whole = node.span().byte_range();
            let (ra, rb) = (a.span().byte_range(), b.span().byte_range());
            let after = [
                &self.text[whole.start..ra.start],
                &self.text[rb.clone()],
                &self.text[ra.end..rb.start],
                &self.text[ra.clone()],
                &self.text[rb.end..whole.end],
            ];
            self.add(whole, after.concat(), Kind::Expression);
        }
    }

    fn binary(&mut self, e: &syn::ExprBinary) {
        use BinOp::*;
        let new: &[&str] = match e.op {
            Add(_) => &["-"],
            Sub(_) => &["+"],
            Mul(_) => &["/"],
            Div(_) | Rem(_) => &["*"],
            Lt(_) => &["<=", ">"],
            Le(_) => &["<", ">"],
            Gt(_) => &[">=", "<"],
            Ge(_) => &[">", "<"],
            Eq(_) => &["!="],
            Ne(_) => &["=="],
            And(_) => &["||"],
            Or(_) => &["&&"],
            Shl(_) => &[">>"],
            Shr(_) => &["<<"],
            BitAnd(_) => &["|"],
            BitOr(_) | BitXor(_) => &["&"],
            AddAssign(_) => &["=", "-="],
            SubAssign(_) => &["=", "+="],
            MulAssign(_) => &["=", "/="],
            DivAssign(_) => &["=", "*="],
            _ => &[],
        };
        if !contains_let(&e.left) && !contains_let(&e.right) {
            new.iter().for_each(|new| self.with(e, &e.op, new));
        }
    }

    fn twin(&self, name: &str) -> Option<String> {
        let part = |a: &str, b: &str| {
            let (wide, new) = (format!("_{a}_"), format!("_{b}_"));
            if name == a {
                return Some(b.to_owned());
            }
            (name.starts_with("_mm") && name.contains(&wide)).then(|| name.replace(&wide, &new))
        };
        TWINS.iter().find_map(|(a, b)| part(a, b).or_else(|| part(b, a)))
    }

    fn method(&mut self, e: &syn::ExprMethodCall) {
        let name = e.method.to_string();
        let address = self.pointers && e.args.len() == 1 && matches!(name.as_str(), "add" | "sub");
        if let Some(twin) = self.twin(&name).filter(|_| !address) {
            self.with(e, &e.method, &twin);
        }
        if FORGOTTEN.contains(&name.as_str()) && e.args.is_empty() {
            let receiver = self.of(&e.receiver).to_owned();
            self.instead(e, receiver);
        }
        self.swaps(e, &e.args);
    }

    fn call(&mut self, e: &syn::ExprCall) {
        let name = self.of(&e.func).to_owned();
        if let Some(twin) = self.twin(&name) {
            self.with(e, &e.func, &twin);
        }
        if name == "sum_to" {
            let gradient = self.of(&e.args[0]).to_owned();
            self.instead(e, gradient);
        }
        self.swaps(e, &e.args);
    }

    /// The arguments of a call but for the amount of work that it tells `par`, and whether threads share it.
    fn arguments(&mut self, name: &str, arguments: &syn::punctuated::Punctuated<Expr, syn::Token![,]>) {
        let place = |table: &[(&str, usize)]| {
            table.iter().find(|(f, _)| name == *f || name.ends_with(&format!("::{f}"))).map(|(_, at)| *at)
        };
        let (cost, threads) = (place(&COSTS).filter(|_| arguments.len() > 2), place(&THREADS));
        for (i, argument) in arguments.iter().enumerate() {
            let is_flag = matches!(argument, Expr::Lit(lit) if matches!(lit.lit, syn::Lit::Bool(_)));
            if cost != Some(i) && !(is_flag && threads == Some(i)) {
                self.visit_expr(argument);
            }
        }
    }

    fn literal(&mut self, e: &syn::ExprLit) {
        match &e.lit {
            syn::Lit::Bool(b) => self.instead(e, (!b.value).to_string()),
            syn::Lit::Int(n) => {
                let (value, suffix) = (n.base10_parse::<u64>().unwrap_or(0), n.suffix());
                self.instead(e, format!("{}{suffix}", value.wrapping_add(1)));
                if value > 0 {
                    self.instead(e, format!("{}{suffix}", value - 1));
                }
            }
            syn::Lit::Float(x) => {
                let zero = x.base10_parse::<f64>().is_ok_and(|x| x == 0.0);
                let text = self.of(e).to_owned();
                self.instead(e, if zero { format!("1.0{}", x.suffix()) } else { format!("(-{text})") });
            }
            _ => {}
        }
    }
}

fn contains_let(e: &Expr) -> bool {
    match e {
        Expr::Let(_) => true,
        Expr::Binary(b) => contains_let(&b.left) || contains_let(&b.right),
        _ => false,
    }
}

impl<'a> Visit<'a> for Finder<'_> {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Mod(x) => &x.attrs,
            syn::Item::Fn(x) => &x.attrs,
            syn::Item::Impl(x) => &x.attrs,
            // Constants are known while compiling, when no mutant can be switched on.
            syn::Item::Const(_) | syn::Item::Static(_) | syn::Item::Enum(_) | syn::Item::Struct(_) => return,
            _ => return visit::visit_item(self, item),
        };
        if !is_elsewhere(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_impl(&mut self, x: &'a syn::ItemImpl) {
        self.within.push(self.of(&*x.self_ty).split('<').next().unwrap_or_default().to_owned());
        visit::visit_item_impl(self, x);
        self.within.pop();
    }

    fn visit_item_fn(&mut self, f: &'a syn::ItemFn) {
        self.function(&f.sig.ident, &f.sig, &f.block);
    }

    fn visit_impl_item_fn(&mut self, f: &'a syn::ImplItemFn) {
        if !is_elsewhere(&f.attrs) {
            self.function(&f.sig.ident, &f.sig, &f.block);
        }
    }

    fn visit_trait_item_fn(&mut self, f: &'a syn::TraitItemFn) {
        if let Some(block) = &f.default {
            self.function(&f.sig.ident, &f.sig, block);
        }
    }

    fn visit_impl_item_const(&mut self, _: &'a syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'a syn::TraitItemConst) {}
    fn visit_type(&mut self, _: &'a syn::Type) {}
    fn visit_pat(&mut self, _: &'a syn::Pat) {}
    fn visit_attribute(&mut self, _: &'a syn::Attribute) {}
    fn visit_expr_const(&mut self, _: &'a syn::ExprConst) {}
    fn visit_angle_bracketed_generic_arguments(&mut self, _: &'a syn::AngleBracketedGenericArguments) {}

    /// Inside of macros that are expressions: `vec![..]`, and `for_float!(name, type, F => ..)`, which is the same code for each F.
    fn visit_macro(&mut self, m: &'a syn::Macro) {
        use syn::parse::Parser;
        if m.path.is_ident("for_float") {
            let mut tokens = m.tokens.clone().into_iter();
            tokens.by_ref().find(|t| t.to_string() == ">");
            if let Ok(body) = syn::parse2::<Expr>(tokens.collect()) {
                Visit::visit_expr(self, &body);
            }
        } else if m.path.is_ident("vec") {
            let list = syn::punctuated::Punctuated::<Expr, syn::Token![,]>::parse_terminated;
            if let Ok(list) = list.parse2(m.tokens.clone()) {
                list.iter().for_each(|e| Visit::visit_expr(self, e));
            }
        }
    }

    fn visit_field_value(&mut self, field: &'a syn::FieldValue) {
        if !AHEAD.contains(&self.of(&field.member)) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_expr_repeat(&mut self, e: &'a syn::ExprRepeat) {
        self.visit_expr(&e.expr);
    }

    fn visit_arm(&mut self, arm: &'a syn::Arm) {
        if !is_elsewhere(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        let attributes: &[syn::Attribute] = match stmt {
            Stmt::Local(local) => &local.attrs,
            Stmt::Expr(Expr::Block(block), _) => &block.attrs,
            Stmt::Expr(Expr::Call(call), _) => &call.attrs,
            _ => &[],
        };
        let cost = matches!(stmt, Stmt::Local(local) if self.of(&local.pat) == "cost");
        if cost || is_elsewhere(attributes) {
            return;
        }
        if let Stmt::Expr(e, Some(_)) = stmt {
            let assigns =
                |b: &syn::ExprBinary| matches!(b.op, BinOp::AddAssign(_) | BinOp::SubAssign(_) | BinOp::MulAssign(_));
            let calls = match e {
                Expr::MethodCall(m) => !m.method.to_string().starts_with("prefetch"),
                Expr::Call(_) | Expr::Assign(_) => true,
                Expr::Binary(b) => assigns(b),
                _ => false,
            };
            if calls {
                self.add(stmt.span().byte_range(), String::new(), Kind::Statement);
            }
        }
        visit::visit_stmt(self, stmt);
    }

    fn visit_expr(&mut self, e: &'a Expr) {
        match e {
            Expr::Binary(b) => self.binary(b),
            Expr::Lit(lit) => self.literal(lit),
            Expr::Unary(u) if matches!(u.op, UnOp::Neg(_) | UnOp::Not(_)) => {
                let operand = self.of(&*u.expr).to_owned();
                self.instead(u, operand);
            }
            Expr::Index(x) if !matches!(*x.index, Expr::Range(_) | Expr::Lit(_)) => {
                let after = format!("({}) + 1", self.of(&*x.index));
                self.instead(&*x.index, after);
            }
            Expr::Range(r) => {
                if let Some(start) = &r.start {
                    let after = format!("({}) + 1", self.of(&**start));
                    self.instead(&**start, after);
                }
                if let Some(end) = &r.end {
                    let after = format!("({}) - 1", self.of(&**end));
                    self.instead(&**end, after);
                }
            }
            Expr::Array(a) => self.swaps(a, &a.elems),
            // Whether threads share the work.
            Expr::If(x) if self.of(&*x.cond) == "threads" => {}
            Expr::If(x) if !contains_let(&x.cond) => {
                self.instead(&*x.cond, "false".to_owned());
                self.instead(&*x.cond, "true".to_owned());
            }
            Expr::MethodCall(m) => {
                self.method(m);
                self.visit_expr(&m.receiver);
                return self.arguments(&m.method.to_string(), &m.args);
            }
            Expr::Call(c) => {
                self.call(c);
                let name = self.of(&*c.func).to_owned();
                return self.arguments(&name, &c.args);
            }
            _ => {}
        }
        visit::visit_expr(self, e);
    }
}
