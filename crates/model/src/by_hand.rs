//! Forward and back by hand, on a GPU: the embeddings, a layer at a time and the head in kernels of our own
//! ([`crate::gpu`]), what ELECTRA projects behind the embeddings in Burn's operations.
//!
//! Burn's graph of operations is the reference, and what everything else runs on.
//!
//! Shapes: `N` tokens of a batch, `D` hidden width, `E` width of the embeddings; `B` pairs of a batch.

use std::collections::{BTreeMap, HashMap};
use std::mem;

use burn::module::{Param, ParamId};
use burn::nn::{Embedding, LayerNorm, Linear};
use burn::tensor::{Device, Tensor, TensorData, Transaction};

use crate::bundle::{Bundle, Group, numbers, read};
use crate::config::ModelConfig;
use crate::cross_encoder::{Batch, CrossEncoder};
use crate::error::Result;
use crate::gpu::{Embedded, Headed, Layered, Places};
use crate::parameters::{ParameterMapper, ParameterVisitor, filled};
use crate::precision::Precision;
use crate::update::{Clip, Moments, Move};

/// A model whose parameters lie in one vector a part, as kernels take them, on a device without autodiff.
#[derive(Clone)]
pub(crate) struct Parts {
    config: ModelConfig,
    embeddings: Part,
    /// Where the embeddings are projected.
    projection: Option<Part>,
    layers: Vec<Part>,
    head: Part,
}

#[derive(Clone)]
struct Part {
    places: Places,
    parameters: Bundle,
}

/// What the way back takes.
pub(crate) struct Tape {
    embedded: Embedded,
    /// What is projected, where something is.
    projected: Option<Tensor<2>>,
    layers: Vec<Layered>,
    head: Headed,
}

impl Parts {
    /// Those of a model on a GPU, of all architectures but ModernBERT.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn of(model: &CrossEncoder) -> Result<Option<Self>> {
        let config = model.config();
        let fits = config.labels.len() == 1
            && config.modern.is_none()
            && config.num_hidden_layers > 0
            && config.hidden_size.max(config.embedding_size) <= crate::gpu::WIDEST
            && config.hidden_size / config.num_attention_heads <= crate::gpu::WIDEST_HEAD;
        if !fits || crate::parallel::is_cpu(&model.device()) {
            return Ok(None);
        }
        let mut all = All::default();
        model.visit_parameters(&mut all);
        let All { named, reading } = all;
        let both = named.into_iter().zip(numbers(reading)?);
        let by_id = both.map(|((id, name), values)| (id, (name, values)));
        Ok(Self::of_parameters(model, &by_id.collect()))
    }

    /// None where a part lacks what others have.
    fn of_parameters(
        model: &CrossEncoder,
        by_id: &HashMap<ParamId, (String, Vec<f32>)>,
    ) -> Option<Self> {
        let device = model.device().without_autodiff();
        let part = |group, places: Places, ids: Vec<Option<ParamId>>| {
            let mut all = vec![0.0; places.length];
            let mut named = Vec::new();
            for (id, range) in ids.into_iter().zip(places.ranges.iter()) {
                if !range.is_empty() {
                    let (name, values) = by_id.get(&id?)?;
                    all[range.clone()].copy_from_slice(values);
                    named.push((name.clone(), range.clone()));
                }
            }
            let parameters = Bundle {
                parameters: named.into(),
                values: Tensor::from_data(TensorData::new(all, [places.length]), &device),
                group: Some(group),
            };
            Some(Part { places, parameters })
        };
        let (config, encoder, head) = (model.config(), model.encoder(), model.head());
        let (width, hidden) = (config.embedding_size, config.hidden_size);
        let table = |table: &Option<Embedding>| table.as_ref().map(|table| table.weight.id);
        let rows = |table: &Option<Embedding>| table.as_ref().map_or(0, |it| it.weight.dims()[0]);
        let [words, _] = encoder.words.weight.dims();
        let rows = [words, rows(&encoder.positions), rows(&encoder.segments)];
        let mut of_embeddings = vec![
            Some(encoder.words.weight.id),
            table(&encoder.positions),
            table(&encoder.segments),
        ];
        of_embeddings.extend(of_norm(&encoder.norm));
        let embeddings = Places::of_embeddings(rows, width);
        let embeddings = part(Group::Embeddings, embeddings, of_embeddings)?;
        let projection = match &encoder.projection {
            None => None,
            Some(projection) => {
                let ids = vec![Some(projection.weight.id), of_bias(projection)];
                let places = Places::of_projection(width, hidden);
                Some(part(Group::Projection, places, ids)?)
            }
        };
        let inner = config.intermediate_size;
        let layers = encoder.post_norm()?.iter().enumerate();
        let layers = layers.map(|(number, layer)| {
            let matrices = [
                &layer.query,
                &layer.key,
                &layer.value,
                &layer.attended,
                &layer.inner,
                &layer.outer,
            ];
            let mut ids: Vec<_> = matrices.map(|linear| Some(linear.weight.id)).into();
            ids.extend(of_norm(&layer.outer_norm));
            ids.extend([of_bias(&layer.outer), of_bias(&layer.inner)]);
            ids.extend(of_norm(&layer.attended_norm));
            ids.extend([&layer.attended, &layer.query, &layer.key, &layer.value].map(of_bias));
            part(Group::Layer(number), Places::of_layer(hidden, inner), ids)
        });
        let layers = layers.collect::<Option<Vec<_>>>()?;
        let of_head = vec![
            Some(head.dense.weight.id),
            Some(head.classifier.weight.id),
            of_bias(&head.dense),
            of_bias(&head.classifier),
        ];
        let head = part(Group::Head, Places::of_head(hidden), of_head)?;
        Some(Self {
            config: config.clone(),
            embeddings,
            projection,
            layers,
            head,
        })
    }

    /// The same, computed with in another precision.
    pub(crate) fn with_precision(mut self, precision: Precision) -> Self {
        self.config.precision = precision;
        self
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub(crate) fn device(&self) -> Device {
        self.head.parameters.values.device()
    }

    /// As a whole, on the CPU.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn model(&self) -> Result<CrossEncoder> {
        let values = read(self.all().map(|part| part.parameters.values.clone()))?;
        let mut put = Put(BTreeMap::new());
        for (part, values) in self.all().zip(values) {
            for (name, range) in &*part.parameters.parameters {
                put.0.insert(name.clone(), values[range.clone()].to_vec());
            }
        }
        let skeleton = CrossEncoder::skeleton(&self.config, &Device::flex());
        Ok(skeleton.map_parameters(&mut put))
    }

    /// The same on another device.
    pub(crate) fn on(&self, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        self.clone()
            .map(|part| part.with(|values| values.to_device(&device)))
    }

    /// The logits of a batch, `[B]`, where nothing goes back.
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor<1> {
        // What the way back would take goes with a layer's work.
        self.forward(batch, false, drop).0
    }

    /// The logits of a batch: `[B]`.
    pub(crate) fn record(&self, batch: &Batch) -> (Tensor<1>, Tape) {
        let mut layers = Vec::new();
        let (logits, embedded, projected, head) =
            self.forward(batch, true, |layer| layers.push(layer));
        let tape = Tape {
            embedded,
            projected,
            layers,
            head,
        };
        (logits, tape)
    }

    /// The slopes at all parameters.
    ///
    /// # Shapes
    /// - slopes: `[B]`, at what [`Parts::record`] gave
    pub(crate) fn back(&self, tape: Tape, slopes: Tensor<1>) -> Vec<Bundle> {
        let (mut slopes, of_head) = tape.head.back(&self.config, slopes);
        let mut found = vec![self.head.parameters.with(of_head)];
        for (part, work) in self.layers.iter().zip(tape.layers).rev() {
            let (of_input, of_layer) = work.back(slopes);
            slopes = of_input;
            found.push(part.parameters.with(of_layer));
        }
        if let (Some(projection), Some(input)) = (&self.projection, tape.projected) {
            let of_projection;
            (slopes, of_projection) = self.back_through(projection, input, slopes);
            found.push(of_projection);
        }
        let of_embeddings = tape.embedded.back(slopes);
        found.push(self.embeddings.parameters.with(of_embeddings));
        found
    }

    /// Gradients by name in the places of parameters.
    pub(crate) fn arranged(&self, gradients: Vec<Bundle>) -> Vec<Bundle> {
        if gradients.iter().all(|bundle| bundle.group.is_some()) {
            return gradients;
        }
        let mut by_name = gradients.into_iter().flat_map(Bundle::apart).collect();
        let device = self.device();
        let arrange = |part: &Part| {
            let Bundle {
                parameters, group, ..
            } = &part.parameters;
            let length = part.places.length;
            Bundle::filled(parameters.clone(), length, *group, &mut by_name, &device)
        };
        self.all().map(arrange).collect()
    }

    /// The same after a step of these, and their moments after it, in their order.
    pub(crate) fn moved(self, moves: Vec<Move>, clip: &Clip) -> (Self, Vec<Moments>) {
        let clip = match clip {
            Clip::There(clip) => clip.clone(),
            Clip::Known { factor, norm } => {
                #[expect(clippy::cast_possible_truncation, reason = "gradients have 32 bits")]
                let both = [*factor, *norm].map(|one| one as f32);
                Tensor::from_floats(both, &self.device())
            }
        };
        let groups: Vec<Option<Group>> = moves.iter().map(|one| one.gradient.group).collect();
        let by_group = moves.into_iter().map(|one| (one.gradient.group, one));
        let mut by_group: HashMap<Option<Group>, Move> = by_group.collect();
        let mut after = HashMap::new();
        let parts = self.map(|part| {
            let group = part.parameters.group;
            let Some(by) = by_group.remove(&group) else {
                return part;
            };
            let places = part.places.clone();
            part.with(|values| {
                let (gradient, moments, adam) = (by.gradient.values, by.moments, by.adam);
                let (values, moments) =
                    crate::gpu::moved(values, &places, gradient, clip.clone(), moments, adam);
                after.insert(group, moments);
                values
            })
        });
        let moments = groups.iter().filter_map(|group| after.remove(group));
        (parts, moments.collect())
    }

    /// With what comes of each vector and the other model's.
    pub(crate) fn mixed(
        self,
        other: &Self,
        mix: impl Fn(Tensor<1>, Tensor<1>) -> Tensor<1>,
    ) -> Self {
        let mut others = other.all().map(|part| &part.parameters.values);
        self.map(|part| match others.next() {
            Some(other) => part.with(|values| mix(values, other.clone())),
            None => part,
        })
    }

    /// The logits of a batch, and the work that finding them took.
    fn forward(
        &self,
        batch: &Batch,
        goes_back: bool,
        mut keep: impl FnMut(Layered),
    ) -> (Tensor<1>, Embedded, Option<Tensor<2>>, Headed) {
        let config = &self.config;
        let (weights, places) = self.embeddings.both();
        let (mut hidden, embedded) = Embedded::forward(config, weights, places, batch, goes_back);
        let mut projected = None;
        if let Some(projection) = &self.projection {
            let input = config.precision.operand(hidden);
            hidden = self.project(projection, &input);
            projected = Some(input);
        }
        for (number, layer) in self.layers.iter().enumerate() {
            let is_last = number + 1 == self.layers.len();
            let (weights, places) = layer.both();
            let (output, work) =
                Layered::forward(config, &embedded, weights, places, is_last, hidden);
            hidden = output;
            keep(work);
        }
        let (weights, places) = self.head.both();
        let (logits, head) = Headed::forward(config, &embedded, weights, places, hidden);
        (logits, embedded, projected, head)
    }

    /// A linear map of what `Precision::operand` gave.
    ///
    /// # Shapes
    /// - input: `[N, E]`
    /// - output: `[N, D]`
    fn project(&self, projection: &Part, input: &Tensor<2>) -> Tensor<2> {
        let [weight, bias] = self.projection_of(projection);
        let precision = self.config.precision;
        let weight = precision.operand(weight);
        precision.wide(input.clone().matmul(weight)) + bias
    }

    /// The slopes at its input, and at its parameters.
    fn back_through(
        &self,
        projection: &Part,
        input: Tensor<2>,
        slopes: Tensor<2>,
    ) -> (Tensor<2>, Bundle) {
        let [weight, _] = self.projection_of(projection);
        let precision = self.config.precision;
        let of_bias = slopes.clone().sum_dim(0).flatten(0, 1);
        let slopes = precision.operand(slopes);
        let of_weight = precision.wide(input.transpose().matmul(slopes.clone()));
        let Bundle {
            parameters, group, ..
        } = &projection.parameters;
        let names = parameters.iter().map(|(name, _)| name.clone());
        let mut found = names.zip([of_weight.flatten(0, 1), of_bias]).collect();
        let (length, device) = (projection.places.length, self.device());
        let found = Bundle::filled(parameters.clone(), length, *group, &mut found, &device);
        let weight = precision.operand(weight);
        let of_input = precision.wide(slopes.matmul(weight.transpose()));
        (of_input, found)
    }

    /// Its weight, `[E, D]`, and its bias, `[1, D]`.
    fn projection_of(&self, projection: &Part) -> [Tensor<2>; 2] {
        let (width, hidden) = (self.config.embedding_size, self.config.hidden_size);
        let (values, places) = projection.both();
        let matrix = |which: usize, shape: [usize; 2]| {
            let range = &places.ranges[which];
            let its = values.clone().narrow(0, range.start, range.len());
            its.reshape(shape)
        };
        [matrix(0, [width, hidden]), matrix(1, [1, hidden])]
    }

    fn all(&self) -> impl Iterator<Item = &Part> {
        let first = [&self.embeddings].into_iter().chain(&self.projection);
        first.chain(&self.layers).chain([&self.head])
    }

    fn map(self, mut map: impl FnMut(Part) -> Part) -> Self {
        Self {
            config: self.config,
            embeddings: map(self.embeddings),
            projection: self.projection.map(&mut map),
            layers: self.layers.into_iter().map(&mut map).collect(),
            head: map(self.head),
        }
    }
}

impl Part {
    fn both(&self) -> (Tensor<1>, &Places) {
        (self.parameters.values.clone(), &self.places)
    }

    fn with(self, map: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Self {
        let Self { places, parameters } = self;
        let Bundle {
            parameters,
            values,
            group,
        } = parameters;
        let parameters = Bundle {
            parameters,
            values: map(values),
            group,
        };
        Self { places, parameters }
    }
}

/// Scale and shift.
fn of_norm(norm: &LayerNorm) -> [Option<ParamId>; 2] {
    [Some(norm.gamma.id), norm.beta.as_ref().map(|beta| beta.id)]
}

fn of_bias(linear: &Linear) -> Option<ParamId> {
    linear.bias.as_ref().map(|bias| bias.id)
}

/// All parameters, asked for at once.
#[derive(Default)]
struct All {
    named: Vec<(ParamId, String)>,
    reading: Transaction,
}

impl ParameterVisitor for All {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        self.named.push((parameter.id, name.to_owned()));
        let reading = mem::take(&mut self.reading);
        self.reading = reading.register(parameter.val().inner());
    }
}

/// Puts parameters in their places.
struct Put(BTreeMap<String, Vec<f32>>);

impl ParameterMapper for Put {
    fn map<const N: usize>(&mut self, name: &str, parameter: Param<Tensor<N>>) -> Param<Tensor<N>> {
        match self.0.remove(name) {
            Some(values) => filled(parameter, values),
            None => parameter,
        }
    }
}
