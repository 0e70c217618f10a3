// WKV6(r, k, v, w, u, state) -> (y, state_out) for TensorRT; README.md has the contract.
#include "../common/recurrence.h"
#include "launch.h"

namespace vrwkv {
namespace {

enum Input { kR, kK, kV, kW, kU, kState, kInputs };

class Wkv6Operator final : public Recurrence {
  public:
    std::unique_ptr<Operator> copy() const override { return std::make_unique<Wkv6Operator>(*this); }
    char const* name() const override { return "WKV6"; }
    int32_t inputs() const override { return kInputs; }
    bool type_fits(int32_t at, DataType const* types) const override {
        if (at == kState || at == kInputs + 1) return types[at] == DataType::kFLOAT;
        if (at == kR) return code(types[kR]) >= 0;
        if (at == kU) return types[kU] == types[kW];
        return types[at] == types[kR] || (at == kW && types[kW] == DataType::kFLOAT);
    }
    char const* types_wanted() const override {
        return "r, k, v of one float type (0, 1 or 7), w and u both of the same or both float32, the state in float32";
    }
    std::string mistake(PluginTensorDesc const* in) const override {
        std::string const series = series_mistake(in, kU);
        if (!series.empty()) return series;
        Dims const& u = in[kU].dims;
        if (u.nbDims == 2 && u.d[0] == in[kState].dims.d[1] && u.d[1] == 64) return {};
        return "u is " + text(u) + "; wanted [C / 64, 64]";
    }
    size_t workspace(DataType const* types, Dims const* shapes) const override {
        auto size = [&](int32_t input, int axis) { return static_cast<int32_t>(shapes[input].d[axis]); };
        return vrwkv_wkv6_workspace(code(types[kR]), size(kR, 0), size(kR, 1), size(kState, 1));
    }
    int32_t run(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs, void* workspace,
                void* stream) const override {
        auto size = [&](int32_t input, int axis) { return static_cast<int32_t>(in[input].dims.d[axis]); };
        return vrwkv_wkv6(code(in[kR].type), code(in[kW].type), size(kR, 0), size(kR, 1), size(kState, 1), inputs,
                          outputs, workspace, static_cast<int32_t>(Path::automatic), stream);
    }
};

}  // namespace

std::unique_ptr<Operator> make_wkv6() { return std::make_unique<Wkv6Operator>(); }

}  // namespace vrwkv
