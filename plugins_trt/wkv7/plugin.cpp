// WKV7(r, w, k, v, a, b, state) -> (y, state_out) for TensorRT; README.md has the contract.
#include "../common/recurrence.h"
#include "launch.h"

namespace vrwkv {
namespace {

enum Input { kR, kW, kK, kV, kA, kB, kState, kInputs };

class Wkv7Operator final : public Recurrence {
  public:
    std::unique_ptr<Operator> copy() const override { return std::make_unique<Wkv7Operator>(*this); }
    char const* name() const override { return "WKV7"; }
    int32_t inputs() const override { return kInputs; }
    bool type_fits(int32_t at, DataType const* types) const override {
        if (at == kState || at == kInputs + 1) return types[at] == DataType::kFLOAT;
        if (at == kR) return code(types[kR]) >= 0;
        return types[at] == types[kR] || (at == kW && types[kW] == DataType::kFLOAT);
    }
    char const* types_wanted() const override {
        return "r, k, v, a, b of one float type (0, 1 or 7), w of the same or float32, the state in float32";
    }
    std::string mistake(PluginTensorDesc const* in) const override { return series_mistake(in, kState); }
    size_t workspace(DataType const* types, Dims const* shapes) const override {
        auto size = [&](int32_t input, int axis) { return static_cast<int32_t>(shapes[input].d[axis]); };
        return vrwkv_wkv7_workspace(code(types[kR]), size(kR, 0), size(kR, 1), size(kState, 1));
    }
    int32_t run(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs, void* workspace,
                void* stream) const override {
        auto size = [&](int32_t input, int axis) { return static_cast<int32_t>(in[input].dims.d[axis]); };
        return vrwkv_wkv7(code(in[kR].type), code(in[kW].type), size(kR, 0), size(kR, 1), size(kState, 1), inputs,
                          outputs, workspace, static_cast<int32_t>(Path::automatic), stream);
    }
};

}  // namespace

std::unique_ptr<Operator> make_wkv7() { return std::make_unique<Wkv7Operator>(); }

}  // namespace vrwkv
