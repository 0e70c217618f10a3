// ReadState(q, gate, y, image_state) -> out for TensorRT; README.md has the contract.
#include "../common/recurrence.h"
#include "launch.h"

namespace vrwkv {
namespace {

enum Input { kQ, kGate, kY, kState, kInputs };

class ReadStateOperator final : public Recurrence {
  public:
    ReadStateOperator() { attributes = {{"head_size", 64}}; }
    std::unique_ptr<Operator> copy() const override { return std::make_unique<ReadStateOperator>(*this); }
    char const* name() const override { return "ReadState"; }
    int32_t inputs() const override { return kInputs; }
    int32_t outputs() const override { return 1; }
    int32_t aliased_input(int32_t) const override { return -1; }
    bool type_fits(int32_t at, DataType const* types) const override {
        if (at == kState) return types[at] == DataType::kFLOAT;
        return at == kQ ? code(types[kQ]) >= 0 : types[at] == types[kQ];
    }
    char const* types_wanted() const override {
        return "q, gate, y of one float type (0, 1 or 7), the state in float32";
    }
    bool shapes(DimsExprs const* in, DimsExprs* out) const override {
        if (in[kY].nbDims != 3 || in[kState].nbDims != 4) return false;
        out[0] = in[kY];
        return true;
    }
    std::string mistake(PluginTensorDesc const* in) const override { return series_mistake(in, kState); }
    size_t workspace(DataType const*, Dims const*) const override { return 0; }
    int32_t run(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs, void*,
                void* stream) const override {
        auto size = [&](int32_t input, int axis) { return static_cast<int32_t>(in[input].dims.d[axis]); };
        return vrwkv_read_state(code(in[kQ].type), size(kQ, 0), size(kQ, 1), size(kState, 1), inputs, outputs[0], stream);
    }
};

}  // namespace

std::unique_ptr<Operator> make_read_state() { return std::make_unique<ReadStateOperator>(); }

}  // namespace vrwkv
