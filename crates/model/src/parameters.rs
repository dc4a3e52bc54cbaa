//! Parameters by their Hugging Face names: walking through a model.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};

use crate::architecture::Names;
use crate::cross_encoder::CrossEncoder;

/// Something done with every parameter.
pub trait ParameterVisitor {
    /// Called once per parameter, always in the same order, with its Hugging Face name.
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>);
}

/// A replacement for every parameter.
pub trait ParameterMapper {
    /// Called once per parameter, in the order of [`ParameterVisitor::visit`], with its Hugging
    /// Face name. Give back `parameter` itself to leave it as it is.
    fn map<const N: usize>(&mut self, name: &str, parameter: Param<Tensor<N>>) -> Param<Tensor<N>>;
}

impl CrossEncoder {
    /// Shows every parameter to `visitor`.
    pub fn visit_parameters(&self, visitor: &mut impl ParameterVisitor) {
        self.visit(&mut Named {
            names: self.config().architecture.names(),
            path: Vec::new(),
            inner: visitor,
        });
    }

    /// Puts what `mapper` gives in the place of every parameter.
    #[must_use]
    pub fn map_parameters(self, mapper: &mut impl ParameterMapper) -> Self {
        let names = self.config().architecture.names();
        self.map(&mut Named {
            names,
            path: Vec::new(),
            inner: mapper,
        })
    }

    /// The same parameters as leaves of a graph of their own, so that a backward pass through this
    /// model and one through the original can run side by side.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.on(&self.device())
    }

    /// The same on another device, as leaves of a graph of their own.
    #[must_use]
    pub fn on(&self, device: &Device) -> Self {
        Module::fork(self.clone(), device)
    }
}

/// Puts another vector in the place of a parameter's, which is handed over without autodiff.
pub fn replace<const N: usize>(
    parameter: Param<Tensor<N>>,
    with: impl FnOnce(Tensor<1>) -> Tensor<1>,
) -> Param<Tensor<N>> {
    let id = parameter.id;
    let autodiff = parameter.lazy_device();
    let value = parameter.val().inner();
    let shape = value.dims();
    let value = with(value.flatten(0, N - 1));
    let value = Tensor::from_inner(value.reshape(shape)).to_device(&autodiff);
    parameter.transform_for_load(value, id)
}

/// A parameter that was not used yet, with values of its shape on its device.
pub(crate) fn filled<const N: usize>(
    parameter: Param<Tensor<N>>,
    values: Vec<f32>,
) -> Param<Tensor<N>> {
    let shape = parameter.lazy_shape().to_vec();
    let tensor = Tensor::from_data(TensorData::new(values, shape), &parameter.lazy_device());
    let id = parameter.id;
    parameter.transform_for_load(tensor, id)
}

/// Keeps the Hugging Face name of the parameter that a walk through the model has come to.
struct Named<'a, W> {
    names: &'static Names,
    path: Vec<String>,
    inner: &'a mut W,
}

impl<W> Named<'_, W> {
    fn name(&self) -> String {
        self.names.of(&self.path)
    }

    fn enter(&mut self, field: &str, container: &str) {
        if !is_variant(container) {
            self.path.push(field.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !is_variant(container) {
            self.path.pop();
        }
    }
}

/// Which variant an enum is, the path does not say.
fn is_variant(container: &str) -> bool {
    container.starts_with("Enum:")
}

impl<W: ParameterVisitor> ModuleVisitor for Named<'_, W> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }

    fn visit_float<const N: usize>(&mut self, parameter: &Param<Tensor<N>>) {
        self.inner.visit(&self.name(), parameter);
    }
}

impl<W: ParameterMapper> ModuleMapper for Named<'_, W> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }

    fn map_float<const N: usize>(&mut self, parameter: Param<Tensor<N>>) -> Param<Tensor<N>> {
        let name = self.name();
        self.inner.map(&name, parameter)
    }
}
