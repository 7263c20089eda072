//! What was measured, as lines for programs and as a table for people.

/// One figure.
struct Row {
    name: String,
    stock: Option<f64>,
    ours: f64,
    unit: &'static str,
    at_most: Option<f64>,
    detail: String,
}

/// All figures of one run.
pub struct Report {
    names: Vec<String>,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(names: Vec<String>) -> Report {
        Report {
            names,
            rows: Vec::new(),
        }
    }

    /// Whether this figure was asked for, or one whose name begins with it.
    pub fn wants(&self, figure: &str) -> bool {
        let named = |name: &String| figure.contains(name.as_str()) || name.starts_with(figure);
        self.names.is_empty() || self.names.iter().any(named)
    }

    /// Notes a figure that may be `at_most` this much, beside the stock servers' where they have
    /// one; `detail` says what it was made of.
    pub fn add(
        &mut self,
        name: &str,
        stock: Option<f64>,
        ours: f64,
        unit: &'static str,
        at_most: Option<f64>,
        detail: String,
    ) {
        if let Some(stock) = stock {
            println!("{name}_stock {stock:.3} {unit}");
        }
        println!("{name} {ours:.3} {unit}");
        self.rows.push(Row {
            name: name.to_owned(),
            stock,
            ours,
            unit,
            at_most,
            detail,
        });
    }

    pub fn print_table(&self) {
        println!("\n| row | stock | ours | limit | reached | made of |\n|---|---|---|---|---|---|");
        for row in &self.rows {
            let stock = row.stock.map_or("-".into(), |stock| format!("{stock:.3}"));
            let reached = match row.at_most {
                Some(most) if row.ours <= most => "yes",
                Some(_) => "NO",
                None => "-",
            };
            let most = row.at_most.map_or("-".into(), |most| most.to_string());
            println!(
                "| `{}` | {stock} | {:.3} {} | {most} | {reached} | {} |",
                row.name, row.ours, row.unit, row.detail
            );
        }
    }
}
