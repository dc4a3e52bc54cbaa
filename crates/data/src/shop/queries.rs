//! Asks the shop for things: the queries of each kind, with what they ask for.

use std::collections::BTreeSet;

use rand::{
    RngExt,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;

use super::{
    Constraint, Product, QueryKind, ShopQuery, Split,
    vocabulary::{ProductType, UseCase, Vocabulary},
    wording::{Units, follows, leans, misspell, phrase},
};

/// How many queries each split has.
const PER_SPLIT: [(Split, usize); 3] = [(Split::Train, 300), (Split::Dev, 50), (Split::Test, 110)];
/// The share of each kind, in hundredths; what a kind cannot fill goes to type with attributes.
const SHARES: [(QueryKind, usize); 6] = [
    (QueryKind::UseCase, 20),
    (QueryKind::PartFor, 12),
    (QueryKind::Brand, 12),
    (QueryKind::Misspelt, 11),
    (QueryKind::Type, 15),
    (QueryKind::TypeAttributes, 30),
];
/// A query is worth asking when this many products answer it exactly, if that can be had.
const WANTED: usize = 3;

/// The queries of every split, with their ids.
pub(super) fn ask(
    vocabulary: &Vocabulary,
    products: &[Product],
    rng: &mut ChaCha8Rng,
) -> Vec<ShopQuery> {
    let mut queries: Vec<ShopQuery> = Vec::new();
    let mut texts = BTreeSet::new();
    for (split, total) in PER_SPLIT {
        let mut types: Vec<&ProductType> = vocabulary
            .types()
            .filter(|(family, _)| family.split == split)
            .map(|(_, kind)| kind)
            .collect();
        let start = queries.len();
        for (kind, share) in SHARES {
            let wanted = match kind {
                QueryKind::TypeAttributes => total - (queries.len() - start),
                _ => (total * share + 50) / 100,
            };
            types.shuffle(rng);
            // A round asks each type once; a few rounds are enough, or the kind has run out.
            let rounds = types.iter().cycle().take(types.len() * 12);
            let mut placed = 0;
            for product_type in rounds {
                if placed == wanted {
                    break;
                }
                let asker = Asker {
                    vocabulary,
                    kind: product_type,
                    products,
                    split,
                };
                if let Some(query) = asker.query(kind, rng)
                    && texts.insert(query.text.to_lowercase())
                {
                    queries.push(query);
                    placed += 1;
                }
            }
        }
        queries[start..].shuffle(rng);
    }
    for (place, query) in queries.iter_mut().enumerate() {
        query.id = format!("q{:03}", place + 1);
    }
    queries
}

/// Somebody who wants a product of one type.
struct Asker<'a> {
    vocabulary: &'a Vocabulary,
    kind: &'a ProductType,
    products: &'a [Product],
    split: Split,
}

impl Asker<'_> {
    fn query(&self, kind: QueryKind, rng: &mut ChaCha8Rng) -> Option<ShopQuery> {
        match kind {
            QueryKind::Type => Some(self.plain(rng)),
            QueryKind::TypeAttributes => Some(self.with_attributes(rng)),
            QueryKind::Brand => self.of_brand(rng),
            QueryKind::UseCase => self.kind.uses.choose(rng).map(|need| self.need(need)),
            QueryKind::Misspelt => {
                let query = if rng.random_bool(0.6) {
                    self.plain(rng)
                } else {
                    self.with_attributes(rng)
                };
                let text = misspell(&query.text, rng)?;
                Some(ShopQuery {
                    kind: QueryKind::Misspelt,
                    text,
                    ..query
                })
            }
            QueryKind::PartFor => self.part(rng),
        }
    }

    fn plain(&self, rng: &mut ChaCha8Rng) -> ShopQuery {
        let text = introduced(self.name(rng).to_owned(), rng);
        self.asking(QueryKind::Type, text)
    }

    fn with_attributes(&self, rng: &mut ChaCha8Rng) -> ShopQuery {
        let count = rng.random_range(1..=2);
        let constraints = self.constraints(count, None, rng);
        let text = introduced(self.described(self.name(rng), &constraints, rng), rng);
        ShopQuery {
            constraints,
            ..self.asking(QueryKind::TypeAttributes, text)
        }
    }

    fn of_brand(&self, rng: &mut ChaCha8Rng) -> Option<ShopQuery> {
        let brand = &self.own().collect::<Vec<_>>().choose(rng)?.brand;
        let count = usize::from(rng.random_bool(0.3));
        let constraints = self.constraints(count, Some(brand), rng);
        let described = self.described(self.name(rng), &constraints, rng);
        let text = match rng.random_range(0..3) {
            0 => format!("{described} {brand}"),
            1 => format!("{described} from {brand}"),
            _ => format!("{brand} {described}"),
        };
        let brand = Some(brand.clone());
        Some(ShopQuery {
            brand,
            constraints,
            ..self.asking(QueryKind::Brand, text.to_lowercase())
        })
    }

    fn need(&self, need: &UseCase) -> ShopQuery {
        let constraints = need.requires.iter().filter_map(|(name, value)| {
            let attribute = self.kind.attribute(name)?;
            Some(Constraint {
                attribute: name.clone(),
                value: value.clone(),
                hard: attribute.hard,
            })
        });
        ShopQuery {
            also: need.also.clone(),
            constraints: constraints.collect(),
            ..self.asking(QueryKind::UseCase, need.text.clone())
        }
    }

    fn part(&self, rng: &mut ChaCha8Rng) -> Option<ShopQuery> {
        let whole = self.kind.fits.choose(rng)?;
        let (_, whole) = self
            .vocabulary
            .types()
            .find(|(_, kind)| kind.name() == whole)?;
        let whole = whole
            .names
            .iter()
            .chain(&whole.ask)
            .collect::<Vec<_>>()
            .choose(rng)?
            .to_lowercase();
        let part = self.kind.part.choose(rng)?;
        let count = usize::from(rng.random_bool(0.35));
        let constraints = self.constraints(count, None, rng);
        let part = self.described(part, &constraints, rng);
        let link = ["for", "for", "for my", "to fit", "to go with my"].choose(rng)?;
        let text = format!("{part} {link} {whole}").to_lowercase();
        Some(ShopQuery {
            constraints,
            ..self.asking(QueryKind::PartFor, text)
        })
    }

    fn asking(&self, kind: QueryKind, text: String) -> ShopQuery {
        ShopQuery {
            id: String::new(),
            text,
            kind,
            split: self.split,
            product_type: self.kind.name().to_owned(),
            also: Vec::new(),
            brand: None,
            constraints: Vec::new(),
        }
    }

    fn name(&self, rng: &mut ChaCha8Rng) -> &str {
        let names: Vec<&String> = self.kind.names.iter().chain(&self.kind.ask).collect();
        names
            .choose(rng)
            .map_or(self.kind.name(), |name| name.as_str())
    }

    fn own(&self) -> impl Iterator<Item = &Product> {
        self.products
            .iter()
            .filter(|product| product.product_type == self.kind.name())
    }

    /// That many constraints which some products (of the brand) satisfy together.
    fn constraints(
        &self,
        count: usize,
        brand: Option<&str>,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Constraint> {
        let own: Vec<&Product> = self
            .own()
            .filter(|product| brand.is_none_or(|brand| product.brand == brand))
            .collect();
        let mut best = (0, Vec::new());
        for _ in 0..10 {
            let Some(model) = own.choose(rng) else { break };
            let mut attributes: Vec<_> = self.kind.attributes.iter().collect();
            attributes.shuffle(rng);
            let constraints: Vec<Constraint> = attributes
                .into_iter()
                .take(count)
                .filter_map(|attribute| {
                    let value = model.attributes.get(&attribute.name)?.clone();
                    Some(Constraint {
                        attribute: attribute.name.clone(),
                        value,
                        hard: attribute.hard,
                    })
                })
                .collect();
            let matching = own
                .iter()
                .filter(|product| {
                    constraints
                        .iter()
                        .all(|constraint| constraint.holds(product))
                })
                .count();
            if matching > best.0 {
                best = (matching, constraints);
            }
            if best.0 >= WANTED {
                break;
            }
        }
        best.1
    }

    /// The name with the constraints around it.
    fn described(&self, name: &str, constraints: &[Constraint], rng: &mut ChaCha8Rng) -> String {
        let units = Units::pick(rng);
        // Some shoppers type the noun first and add what matters.
        let noun_first = rng.random_bool(0.25);
        let (mut before, mut after, mut leaning) = (Vec::new(), Vec::new(), Vec::new());
        for constraint in constraints {
            let Some(attribute) = self.kind.attribute(&constraint.attribute) else {
                continue;
            };
            let said = phrase(attribute, &constraint.value, units);
            if leans(&said) {
                leaning.push(said);
            } else if noun_first || follows(attribute, &constraint.value) {
                after.push(said);
            } else {
                before.push(said);
            }
        }
        before.push(name.to_owned());
        [before, after, leaning].concat().join(" ")
    }
}

/// Most shoppers just type the words; a few open with something.
fn introduced(text: String, rng: &mut ChaCha8Rng) -> String {
    let text = if rng.random_bool(0.9) {
        text.to_lowercase()
    } else {
        text
    };
    match rng.random_range(0..100) {
        0..5 => format!("best {text}"),
        5..8 => format!("looking for {text}"),
        8..10 => format!("buy {text}"),
        _ => text,
    }
}
