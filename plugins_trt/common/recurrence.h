// What the two recurrences share as plugins: series [B, T, C], a state [B, H, 64, 64] in float32, two attributes.
#pragma once

#include "plugin.h"

namespace vrwkv {

class Recurrence : public Operator {
  public:
    Recurrence() { attributes = {{"head_size", 64}, {"alias_state", 0}}; }
    int32_t outputs() const override { return 2; }
    std::string attributes_wrong() const override {
        if (attributes[0].value == 64) return {};
        return "head_size is " + std::to_string(attributes[0].value) + "; wanted 64";
    }
    // Off unless asked for: a state written in place has ruined another runtime's results under CUDA-graph capture.
    int32_t aliased_input(int32_t output) const override {
        return output == 1 && attributes[1].value != 0 ? inputs() - 1 : -1;
    }
    DataType output_type(int32_t output, DataType const* in) const override {
        return output == 0 ? in[0] : DataType::kFLOAT;
    }
    bool shapes(DimsExprs const* in, DimsExprs* out) const override {
        DimsExprs const& state = in[inputs() - 1];
        if (in[0].nbDims != 3 || state.nbDims != 4) return false;
        out[0] = in[0];
        out[1] = state;
        return true;
    }

  protected:
    // Series 0 to `series` - 1 agree with the state.
    std::string series_mistake(PluginTensorDesc const* in, int32_t series) const {
        Dims const &first = in[0].dims, &state = in[inputs() - 1].dims;
        if (first.nbDims != 3 || state.nbDims != 4) return "ranks are wrong: series " + text(first);
        if (state.d[0] != first.d[0] || state.d[2] != 64 || state.d[3] != 64 || state.d[1] * 64 != first.d[2])
            return "state " + text(state) + " does not belong to series " + text(first) +
                   "; wanted [B, C / 64, 64, 64] and [B, T, C]";
        for (int32_t i = 1; i < series; i++)
            for (int32_t d = 0; d < 3; d++)
                if (in[i].dims.nbDims != 3 || in[i].dims.d[d] != first.d[d])
                    return "input " + std::to_string(i) + " is " + text(in[i].dims) + "; wanted " + text(first);
        return {};
    }
};

}  // namespace vrwkv
