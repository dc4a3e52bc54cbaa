//! Kernels of attention, started: on tensor cores, where there are some for what is asked.
//!
//! Shapes are those of [`super::layer`].

use burn::cubecl::ir::features::MmaConfig;
use burn::cubecl::ir::types::LdMatrixForm;
use burn::cubecl::ir::{ElemType, FloatKind};
use burn::cubecl::prelude::{CubeCount, CubeDim};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{Gpu, count, cubes, read, width};
use super::layer::Asked;
use super::layout::Told;
use super::places::{KEY_BIAS, QUERY_BIAS, VALUE_BIAS, Weights};
use super::{attend, tensor_cores};

impl Gpu<'_> {
    /// What each row finds that asks, `[R, D]`, and the logarithms of its heads' sums, `[R, H]`.
    pub(super) fn attend(&self, asked: &Asked, weights: &Weights) -> (CubeTensor, CubeTensor) {
        let shape = self.frame.output();
        let of_logs = [shape[0], self.frame.layout.heads];
        let [context, logs] =
            self.together([(shape.into(), self.operand), (of_logs.into(), DType::F32)]);
        let it = self.attention(asked, self.asking());
        if it.on_cores {
            tensor_cores::attend::launch(
                &self.client,
                it.cubes,
                CubeDim::new_1d(count(tensor_cores::UNITS)),
                it.vector,
                self.vector,
                read(it.queries),
                read(it.others),
                read(&weights.at(QUERY_BIAS)),
                read(&weights.at(VALUE_BIAS)),
                read(&it.tiles),
                read(&context),
                read(&logs),
                it.count,
                it.scale,
                it.heads,
                it.depth,
                it.queries_width,
                it.others_width,
                it.keys_begin,
                self.element(),
            );
        } else {
            attend::attend::launch(
                &self.client,
                it.cubes,
                CubeDim::new_1d(count(attend::ROWS)),
                it.vector,
                read(it.queries),
                read(it.others),
                read(&weights.at(QUERY_BIAS)),
                read(&weights.at(KEY_BIAS)),
                read(&weights.at(VALUE_BIAS)),
                read(&it.tiles),
                read(&context),
                read(&logs),
                it.count,
                it.scale,
                it.heads,
                it.depth,
                it.queries_width,
                it.others_width,
                it.keys_begin,
                self.element(),
            );
        }
        (context, logs)
    }

    /// The slopes at queries and at keys and values, into the two `goals`, which lie as these do, from those
    /// at what was found.
    pub(super) fn attend_back(
        &self,
        asked: &Asked,
        weights: &Weights,
        slopes: &CubeTensor,
        [context, logs]: [&CubeTensor; 2],
        [of_queries, of_others]: [&CubeTensor; 2],
    ) {
        let means = self.like(logs);
        let asking = self.attention(asked, self.asking());
        let others = self.attention(asked, self.asked());
        if asking.on_cores {
            self.queries_back_on_cores(
                &asking,
                weights,
                slopes,
                [context, logs],
                [of_queries, &means],
            );
            self.others_back_on_cores(&others, weights, slopes, [logs, &means], of_others);
        } else {
            self.queries_back(
                &asking,
                weights,
                slopes,
                [context, logs],
                [of_queries, &means],
            );
            self.others_back(&others, weights, slopes, [logs, &means], of_others);
        }
    }

    fn queries_back(
        &self,
        it: &Attention,
        weights: &Weights,
        slopes: &CubeTensor,
        [context, logs]: [&CubeTensor; 2],
        [of_queries, means]: [&CubeTensor; 2],
    ) {
        attend::queries_back::launch(
            &self.client,
            it.cubes.clone(),
            CubeDim::new_1d(count(attend::ROWS)),
            it.vector,
            read(it.queries),
            read(it.others),
            read(&weights.at(QUERY_BIAS)),
            read(&weights.at(KEY_BIAS)),
            read(&weights.at(VALUE_BIAS)),
            read(&it.tiles),
            read(slopes),
            read(context),
            read(logs),
            read(of_queries),
            read(means),
            it.count,
            it.scale,
            it.heads,
            it.depth,
            it.queries_width,
            it.others_width,
            it.keys_begin,
            self.element(),
        );
    }

    fn queries_back_on_cores(
        &self,
        it: &Attention,
        weights: &Weights,
        slopes: &CubeTensor,
        [context, logs]: [&CubeTensor; 2],
        [of_queries, means]: [&CubeTensor; 2],
    ) {
        tensor_cores::queries_back::launch(
            &self.client,
            it.cubes.clone(),
            CubeDim::new_1d(count(tensor_cores::UNITS)),
            it.vector,
            self.vector,
            read(it.queries),
            read(it.others),
            read(&weights.at(QUERY_BIAS)),
            read(&weights.at(VALUE_BIAS)),
            read(&it.tiles),
            read(slopes),
            read(context),
            read(logs),
            read(of_queries),
            read(means),
            it.count,
            it.scale,
            it.heads,
            it.depth,
            it.queries_width,
            it.others_width,
            it.keys_begin,
            self.element(),
        );
    }

    fn others_back(
        &self,
        it: &Attention,
        weights: &Weights,
        slopes: &CubeTensor,
        [logs, means]: [&CubeTensor; 2],
        of_others: &CubeTensor,
    ) {
        // Where both fit into registers, both at once.
        let goals: &[[bool; 2]] = if it.depth * it.vector <= attend::BOTH {
            &[[true, true]]
        } else {
            &[[true, false], [false, true]]
        };
        for [of_keys, of_values] in goals {
            attend::others_back::launch(
                &self.client,
                it.cubes.clone(),
                CubeDim::new_1d(count(attend::ROWS)),
                it.vector,
                read(it.queries),
                read(it.others),
                read(&weights.at(QUERY_BIAS)),
                read(&weights.at(KEY_BIAS)),
                read(&weights.at(VALUE_BIAS)),
                read(&it.tiles),
                read(slopes),
                read(logs),
                read(means),
                read(of_others),
                it.count,
                it.scale,
                it.heads,
                it.depth,
                it.queries_width,
                it.others_width,
                it.keys_begin,
                *of_keys,
                *of_values,
                self.element(),
            );
        }
    }

    fn others_back_on_cores(
        &self,
        it: &Attention,
        weights: &Weights,
        slopes: &CubeTensor,
        [logs, means]: [&CubeTensor; 2],
        of_others: &CubeTensor,
    ) {
        tensor_cores::others_back::launch(
            &self.client,
            it.cubes.clone(),
            CubeDim::new_1d(count(tensor_cores::UNITS)),
            it.vector,
            self.vector,
            read(it.queries),
            read(it.others),
            read(&weights.at(QUERY_BIAS)),
            read(&it.tiles),
            read(slopes),
            read(logs),
            read(means),
            read(of_others),
            it.count,
            it.scale,
            it.heads,
            it.depth,
            it.queries_width,
            it.others_width,
            it.keys_begin,
            self.element(),
        );
    }

    fn attention<'b>(&self, asked: &'b Asked, tiles: Told) -> Attention<'b> {
        let (queries, others, keys_begin) = match asked {
            Asked::All { projected, .. } => (projected, projected, self.frame.width),
            Asked::First {
                queries, others, ..
            } => (queries, others, 0),
        };
        let (tiles, numbers) = self.frame.layout.told(tiles, queries);
        let heads = self.frame.layout.heads;
        let depth = self.frame.width / heads;
        let on_cores = self.has_cores(depth);
        let vector = if on_cores {
            tensor_cores::VECTOR
        } else {
            self.vector
        };
        Attention {
            on_cores,
            vector,
            queries,
            others,
            tiles,
            count: numbers / 4,
            cubes: cubes(numbers / 4 * heads),
            scale: 1.0 / (depth as f32).sqrt(),
            heads,
            depth: depth / vector,
            queries_width: width(queries) / vector,
            others_width: width(others) / vector,
            keys_begin: keys_begin / vector,
        }
    }

    /// Whether there are tensor cores for heads of that width, and what brings rows to them.
    fn has_cores(&self, depth: usize) -> bool {
        let properties = self.client.properties();
        let matmul = &properties.features.matmul;
        let element = self.element();
        let products = MmaConfig {
            a_type: element,
            b_type: element,
            cd_type: ElemType::Float(FloatKind::F32),
            m: 16,
            n: 8,
            k: 16,
        };
        self.rounds()
            // What biases are read in.
            && self.vector == tensor_cores::VECTOR / 2
            && properties.hardware.plane_size_min == count(tensor_cores::PLANE)
            && properties.hardware.plane_size_max == count(tensor_cores::PLANE)
            && depth.is_multiple_of(16)
            && depth <= tensor_cores::WIDEST
            && matmul.mma.contains(&products)
            && matmul.ldmatrix_forms.contains(&LdMatrixForm::M8N8B16)
    }

    /// The tiles of rows that ask, with those that they ask.
    fn asking(&self) -> Told {
        if self.frame.is_last {
            Told::First
        } else {
            Told::All
        }
    }

    /// The tiles of rows that are asked, with those that ask them.
    fn asked(&self) -> Told {
        if self.frame.is_last {
            Told::ToFirst
        } else {
            Told::All
        }
    }
}

/// What kernels of attention take.
struct Attention<'a> {
    on_cores: bool,
    /// Numbers that are read at once.
    vector: usize,
    queries: &'a CubeTensor,
    others: &'a CubeTensor,
    tiles: CubeTensor,
    count: usize,
    cubes: CubeCount,
    /// Of queries.
    scale: f32,
    heads: usize,
    // In vectors.
    depth: usize,
    queries_width: usize,
    others_width: usize,
    keys_begin: usize,
}
