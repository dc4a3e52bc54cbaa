//! Products of matrices.
//!
//! Burn's tuner chooses their kernels, but for operands of 16 bits on GPUs whose hardware copies tiles (from
//! Hopper on). Where a product has four times as many rows as columns, the tuner of Burn 0.23.0-pre.1 tries
//! tiles of 512 rows there, of which the hardware takes 256; it counts that failure as one of every kernel it
//! tries after it, and takes the slowest of all, whose output it holds for lost. There another list of kernels
//! is measured: Burn's without those, some that Burn's tuner does not know, and those of [`hopper`].

use burn::cubecl::client::Client;
use burn::cubecl::config::autotune::AutotuneLevel;
use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use burn::cubecl::ir::{ElemType, FloatKind};
use burn::cubecl::tune::{LocalTuner, Tunable, TunableSet, local_tuner};
use burn::tensor::DType;
use burn_cubecl::CubeTuneId;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::kernels::tensor::{PlainTensor, StoredTensor};
use cubek::matmul::kernels::{
    CubeStagedMatmulRoutine, HypercubeLastArrivalMatmulRoutine, MatmulRoutine,
    MatmulRoutineCandidate,
};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::matmul::multi_level::components::tile::TileMatmulKind;
use cubek::matmul::multi_level::routines::batch::double_buffering::DoubleBufferingArgs;
use cubek::matmul::multi_level::routines::batch::ordered_double_buffering::OrderedSelectionArgs;
use cubek::matmul::multi_level::routines::batch::simple::SimpleArgs;
use cubek::matmul::routine::BlueprintStrategy;
use cubek::matmul::tune_key::MatmulAutotuneKey;
use cubek::microkernel::matmul::MatmulMicrokernel;
use cubek::microkernel::matmul::cube::{CubeStagedDelivery, CubeStagedMicrokernelSettings};
use cubek::microkernel::matmul::plane::PlaneFragmentTransport;
use cubek::std::microkernel::StageRing;
use cubek::std::{Hardware, InputBinding};

use super::hopper;

/// The product, into `output`.
pub(super) fn product_into(left: CubeTensor, right: CubeTensor, output: CubeTensor) {
    // There is nothing to write.
    if output.meta.num_elements() == 0 {
        return;
    }
    let copies_tiles = !left.client.properties().features.tma.is_empty();
    if left.dtype.size() == 2 && copies_tiles {
        tuned(left, right, output);
        return;
    }
    let dtype = output.dtype;
    let made = matmul(left, right, Some(output), MatmulStrategy::Autotune, dtype);
    // As Burn's own products do, whose panics are what a run hears of a device that fails.
    made.unwrap_or_else(|error| panic!("a product of matrices: {error}"));
}

/// Both factors, and what comes of them.
type Matrices = (CubeTensor, CubeTensor, CubeTensor);

type Candidates = TunableSet<MatmulAutotuneKey, Matrices, ()>;

fn tuned(left: CubeTensor, right: CubeTensor, output: CubeTensor) {
    static TUNER: LocalTuner<MatmulAutotuneKey, CubeTuneId> = local_tuner!();

    let client = left.client.clone();
    let id = CubeTuneId::new(&client, &left.device);
    let of = client.clone();
    let candidates = TUNER.init(&id, move || {
        let config = CubeClRuntimeConfig::get();
        candidates(&of, matches!(config.autotune.level, AutotuneLevel::Minimal))
    });
    TUNER.execute(&id, &client, candidates, (left, right, output));
}

/// One of the kernels that are measured.
struct Kernel {
    name: String,
    /// Whether it is for factors that lie like these, on their device.
    is_asked: fn(&Matrices) -> bool,
    launch: Launch,
}

type Launch = Box<dyn Fn(&Matrices) -> Result<(), String> + Send + Sync>;

/// Where the fastest refuses, the first is taken: what is fastest for one number of rows is so for others as well,
/// and may not take them.
fn candidates(client: &Client, is_minimal: bool) -> Candidates {
    let set = TunableSet::new(
        key,
        |_: &MatmulAutotuneKey, (left, right, output): &Matrices| {
            (left.clone(), right.clone(), output.copy())
        },
    );
    kernels(client, is_minimal)
        .into_iter()
        .fold(set, |set, kernel| {
            let name = kernel.name.clone();
            set.with(Tunable::new(&name, move |matrices: Matrices| {
                if !(kernel.is_asked)(&matrices) {
                    return Err("for factors that lie otherwise".to_owned());
                }
                (kernel.launch)(&matrices).or_else(|_| launch(&first(), &matrices))
            }))
        })
}

/// The first alone where as little as may be is to be measured. None adds by atomics: sums are the same from run to
/// run.
fn kernels(client: &Client, is_minimal: bool) -> Vec<Kernel> {
    let mut strategies = strategies();
    if is_minimal {
        strategies.truncate(1);
    }
    let of_burn = strategies.into_iter().map(|strategy| Kernel {
        name: strategy.to_string(),
        is_asked: |_| true,
        launch: Box::new(move |matrices| launch(&strategy, matrices)),
    });
    let mut kernels: Vec<Kernel> = of_burn.collect();
    if is_minimal {
        return kernels;
    }
    kernels.extend(hopper::TILES.map(|tile| Kernel {
        name: format!("wgmma, {} columns, {} stages", tile.columns, tile.stages),
        is_asked: |(left, right, _)| hopper::takes(left) && hopper::takes(right),
        launch: Box::new(move |(left, right, output)| hopper::product(tile, left, right, output)),
    }));
    let hardware = Hardware::from_client(client);
    for staged in MatmulRoutineCandidate::list(CubeStagedMatmulRoutine, &hardware) {
        let CubeStagedMicrokernelSettings {
            plane,
            ring,
            fill,
            planes_along_k,
            ..
        } = staged.settings().microkernel;
        if planes_along_k.get() > 1 {
            continue;
        }
        if fill.delivery == CubeStagedDelivery::Tma {
            // Of a factor that lies by rows they would be others, without the hardware's copies.
            kernels.push(of_cubek(staged, |(_, right, _)| lies_by_columns(right)));
        } else if plane.transport == PlaneFragmentTransport::Mma
            && ring == StageRing::DOUBLE_THROUGH_REGISTERS
        {
            kernels.push(of_cubek(staged, |_| true));
        }
    }
    // Several cubes share a sum where few tiles have long ones: of the slopes at parameters. With more than two
    // cubes a processor their parts would take memory.
    let shared = MatmulRoutineCandidate::list(HypercubeLastArrivalMatmulRoutine, &hardware);
    let shared = shared
        .into_iter()
        .filter(|it| it.settings().cubes_per_worker.get() <= 2);
    kernels.extend(shared.map(|it| of_cubek(it, |(left, _, _)| lies_by_columns(left))));
    kernels
}

fn of_cubek<R, M, S>(
    candidate: MatmulRoutineCandidate<R>,
    is_asked: fn(&Matrices) -> bool,
) -> Kernel
where
    R: MatmulRoutine<M, S> + Copy,
    M: MatmulMicrokernel,
    MatmulRoutineCandidate<R>: Send + Sync + 'static,
{
    Kernel {
        name: candidate.settings().to_string(),
        is_asked,
        launch: Box::new(move |(left, right, output)| {
            let client = output.client.clone();
            let factor = |matrix| StoredTensor::Plain(plain(matrix));
            candidate
                .launch_into(&client, factor(left), factor(right), plain(output))
                .map_err(|refusal| format!("{refusal:?}"))
        }),
    }
}

pub(super) fn lies_by_columns(matrix: &CubeTensor) -> bool {
    matrix.meta.strides()[0] == 1
}

/// That takes all factors.
fn first() -> Strategy {
    Strategy::SimpleCyclicCmma(BlueprintStrategy::Inferred(simple(TileMatmulKind::Cmma)))
}

fn simple(tile_matmul: TileMatmulKind) -> SimpleArgs {
    SimpleArgs {
        tile_matmul,
        multi_rows: false,
    }
}

/// Burn's, but for those of more than 256 rows in a tile, and for those that seldom win.
fn strategies() -> Vec<Strategy> {
    vec![
        first(),
        Strategy::SimpleCyclicMma(BlueprintStrategy::Inferred(simple(TileMatmulKind::Mma))),
        Strategy::OrderedDoubleMma(BlueprintStrategy::Inferred(OrderedSelectionArgs {
            partition_k: Some(2),
            row_count: Some(8),
            rows_per_plane: Some(2),
            tile_matmul: TileMatmulKind::Mma,
        })),
        Strategy::DoubleCyclicMma(BlueprintStrategy::Inferred(DoubleBufferingArgs {
            specialized: false,
            tile_matmul: TileMatmulKind::Mma,
        })),
        Strategy::SimpleTmaMma(BlueprintStrategy::Inferred(simple(TileMatmulKind::Mma))),
        Strategy::SpecializedTmaMma(BlueprintStrategy::Inferred(().into())),
    ]
}

fn launch(strategy: &Strategy, (left, right, output): &Matrices) -> Result<(), String> {
    let [of_left, of_right, of_output] = [left, right, output].map(element);
    let client = output.client.clone();
    let mut elements = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: of_left,
        rhs: of_right,
        out: of_output,
    });
    launch_ref(
        &strategy.clone().into(),
        &client,
        InputBinding::new(left.clone().binding(), of_left),
        InputBinding::new(right.clone().binding(), of_right),
        output.clone().binding(),
        &mut elements,
    )
    .map_err(|error| format!("{error:?}"))
}

fn plain(matrix: &CubeTensor) -> PlainTensor {
    PlainTensor::new(matrix.clone().binding(), element(matrix))
}

fn key((left, right, output): &Matrices) -> MatmulAutotuneKey {
    let [of_left, of_right, of_output] = [left, right, output].map(element);
    MatmulAutotuneKey::generate(
        &left.client,
        left.meta.shape(),
        right.meta.shape(),
        left.meta.strides(),
        right.meta.strides(),
        left.meta.tiling,
        right.meta.tiling,
        of_left,
        of_right,
        of_output,
        None,
        None,
    )
}

fn element(matrix: &CubeTensor) -> ElemType {
    float(matrix.dtype)
}

/// As kernels name it.
pub(super) fn float(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        _ => FloatKind::F32,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::env;
    use std::sync::Arc;

    use burn::cubecl::prelude::CubeElement;
    use burn_cubecl::CubeDevice;
    use burn_cubecl::kernel::cast;

    use super::super::launch::transposed;
    use super::*;

    /// A factor: its numbers in the order of rows, and as it lies on the device.
    pub(in crate::gpu) struct Factor {
        pub(in crate::gpu) numbers: Vec<f32>,
        pub(in crate::gpu) matrix: CubeTensor,
    }

    /// Numbers of few bits, whose products and sums are whole in 32.
    pub(in crate::gpu) fn factor(
        device: &CubeDevice,
        [rows, columns]: [usize; 2],
        is_transposed: bool,
        dtype: DType,
    ) -> Factor {
        let number = |row: usize, column: usize| ((row * 5 + column * 7) % 13) as f32 / 4.0 - 1.5;
        let numbers = |rows, columns, number: &dyn Fn(usize, usize) -> f32| {
            let row = |row| (0..columns).map(move |column| number(row, column));
            (0..rows).flat_map(row).collect::<Vec<_>>()
        };
        let matrix = if is_transposed {
            let lying = numbers(columns, rows, &|column, row| number(row, column));
            transposed(matrix(device, [columns, rows], &lying, dtype))
        } else {
            let lying = numbers(rows, columns, &number);
            matrix(device, [rows, columns], &lying, dtype)
        };
        Factor {
            numbers: numbers(rows, columns, &number),
            matrix,
        }
    }

    /// Of `[M, K]` and `[K, N]`.
    pub(in crate::gpu) fn product(left: &[f32], right: &[f32], shape: [usize; 3]) -> Vec<f32> {
        let [rows, depth, columns] = shape;
        let sum = |at: usize| {
            let (row, column) = (at / columns, at % columns);
            let one = |step| left[row * depth + step] * right[step * columns + column];
            (0..depth).map(one).sum()
        };
        (0..rows * columns).map(sum).collect()
    }

    /// As they lie on the device.
    pub(in crate::gpu) fn numbers(of: CubeTensor) -> Vec<f32> {
        let of = cast(of, DType::F32);
        let client = of.client.clone();
        f32::from_bytes(&client.read_one(of.handle).unwrap()).to_vec()
    }

    pub(in crate::gpu) fn matrix(
        device: &CubeDevice,
        shape: [usize; 2],
        numbers: &[f32],
        dtype: DType,
    ) -> CubeTensor {
        let client = device.client();
        let handle = client.create_from_slice(f32::as_bytes(numbers));
        let matrix =
            CubeTensor::new_contiguous(client, device.clone(), shape.into(), handle, DType::F32);
        cast(matrix, dtype)
    }

    /// Of products there and back, and of what parameters' slopes are: more rows than the largest tile has,
    /// and numbers of rows that no tile divides. What is fastest is among them.
    #[test]
    fn every_kernel_that_is_measured_has_the_product_on_a_gpu() {
        static TUNER: LocalTuner<MatmulAutotuneKey, CubeTuneId> = local_tuner!("test");

        if env::var("RETORT_TEST_GPU").as_deref() != Ok("cuda") {
            println!("only CUDA has other kernels");
            return;
        }
        let device = CubeDevice::default();
        let client = device.client();
        let id = CubeTuneId::new(&client, &device);
        let candidates = Arc::new(candidates(&client, false));
        let kernels = kernels(&client, false);
        let has_wgmma = !client.properties().features.matmul.wgmma.is_empty();
        for (is_left, is_right, [dtype, to], all) in [
            (false, false, [DType::BF16, DType::BF16], 13),
            (false, true, [DType::F16, DType::F16], 22),
            (true, false, [DType::BF16, DType::F32], 15),
        ] {
            for tokens in [523, 513, 1024] {
                let [rows, depth, columns] = if is_left {
                    [64, tokens, 128]
                } else {
                    [tokens, 64, 128]
                };
                let left = factor(&device, [rows, depth], is_left, dtype);
                let right = factor(&device, [depth, columns], is_right, dtype);
                let sums = product(&left.numbers, &right.numbers, [rows, depth, columns]);
                let rounding = match to {
                    DType::F32 => 0.0,
                    DType::F16 => 1.0 / 2048.0,
                    _ => 1.0 / 256.0,
                };
                let run = |make: &dyn Fn(Matrices) -> bool, name: &str| {
                    let unwritten = vec![f32::NAN; rows * columns];
                    let output = matrix(&device, [rows, columns], &unwritten, to);
                    if !make((left.matrix.clone(), right.matrix.clone(), output.clone())) {
                        return false;
                    }
                    let found = numbers(output);
                    let is_near =
                        |(found, sum): (&f32, &f32)| (found - sum).abs() <= sum.abs() * rounding;
                    let is_right = found.iter().zip(&sums).all(is_near);
                    assert!(is_right, "{name}: {rows}, {depth}, {columns}, {dtype:?}");
                    true
                };
                let serving = kernels.iter().filter(|kernel| {
                    let make = |matrices: Matrices| {
                        (kernel.is_asked)(&matrices) && (kernel.launch)(&matrices).is_ok()
                    };
                    run(&make, &kernel.name)
                });
                let serving = serving.count();
                assert!(!has_wgmma || serving == all, "{serving}");
                let fastest = |matrices| {
                    TUNER.execute(&id, &client, Arc::clone(&candidates), matrices);
                    true
                };
                run(&fastest, "the fastest");
            }
        }
    }
}
